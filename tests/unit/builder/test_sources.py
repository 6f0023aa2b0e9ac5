"""A model from several checkpoints: the projector's, and one of the language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from multimodal_api.build import ExitCode
from multimodal_api.engine import Dtype
from multimodal_api.families import Family, LlmType
from multimodal_api.reasons import Reason
from multimodal_builder.canonical import Converted
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.inspection import inspect
from multimodal_builder.main import main
from support.archives import CKPT, CLASSIC, Archive
from support.conversion import write_model
from support.states import keep_tensors, saved, state_of

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_api.errors import Failure


def is_projector(name: str) -> bool:
    return "mm_projector" in name


def projector_alone() -> Archive:
    """What NeMo saves of a stage that trains nothing but the projector."""
    archive = Archive.read(CLASSIC).set_config("mm_cfg.llm.freeze", True)  # noqa: FBT003 (a value, not a flag)
    return keep_tensors(archive, is_projector)


def language_alone() -> Archive:
    """A text-only model: its configuration knows nothing of pictures."""
    archive = Archive.read(CLASSIC).set_config("mm_cfg", ...).set_config("data", ...)
    return keep_tensors(archive, lambda name: not is_projector(name))


def problems_of(visual: Path, llm: Path | None) -> tuple[Failure, ...]:
    paths = CheckpointPaths(visual=visual, llm=llm)
    inspection, _, opened = inspect(paths, family=Family.NEVA, llm_type=LlmType.LLAMA, dtype=Dtype.FLOAT32, limits=None)
    opened.close()
    return inspection.problems


def convert(paths: CheckpointPaths, out: Path) -> tuple[dict[str, bytes], Converted]:
    converted = write_model(out, paths)
    return {file.path: (out / file.path).read_bytes() for file in converted.files}, converted


def test_projector_and_language_model_from_two_checkpoints_are_one_model(tmp_path: Path) -> None:
    whole, _ = convert(CheckpointPaths(visual=Archive.read(CLASSIC).write(tmp_path)), tmp_path / "whole")
    paths = CheckpointPaths(
        visual=projector_alone().write(tmp_path, "visual.nemo"), llm=language_alone().write(tmp_path, "llm.nemo")
    )
    parts, _ = convert(paths, tmp_path / "parts")
    assert parts == whole


def test_the_language_model_that_is_given_is_the_one_that_is_taken(tmp_path: Path) -> None:
    """The visual checkpoint has one too, of other sizes in its configuration and with other values."""
    visual = Archive.read(CLASSIC).set_config("num_layers", 1).write(tmp_path, "visual.nemo")
    whole, alone = convert(CheckpointPaths(visual=Archive.read(CLASSIC).write(tmp_path)), tmp_path / "whole")
    llm = language_alone().write(tmp_path, "llm.nemo")
    parts, both = convert(CheckpointPaths(visual=visual, llm=llm), tmp_path / "parts")
    assert parts == whole
    assert both.checkpoint_sha256 != alone.checkpoint_sha256


def test_the_digest_covers_every_checkpoint(tmp_path: Path) -> None:
    visual = projector_alone().write(tmp_path, "visual.nemo")
    digests = set()
    for number, key in enumerate(("seed", "nemo_version", "precision")):
        llm = language_alone().set_config(key, "another").write(tmp_path, "llm.nemo")
        digests.add(convert(CheckpointPaths(visual=visual, llm=llm), tmp_path / str(number))[1].checkpoint_sha256)
    assert len(digests) == 3


def test_a_projector_alone_asks_for_its_language_model(tmp_path: Path) -> None:
    (problem,) = problems_of(projector_alone().write(tmp_path), None)
    assert problem.reason is Reason.CHECKPOINT_WEIGHTS
    assert problem.at == "model.nemo: model_config.yaml: mm_cfg.llm.freeze"
    assert "is True, and the checkpoint holds no language model" in problem.problem
    assert "--llm" in problem.remedy


def test_a_language_model_of_another_width_is_refused(tmp_path: Path) -> None:
    llm = language_alone().set_config("hidden_size", 128).write(tmp_path, "llm.nemo")
    (problem, *_) = problems_of(projector_alone().write(tmp_path), llm)
    assert problem.at == "llm.nemo: model_config.yaml: hidden_size"
    assert problem.problem == "is 128, but the projector was trained for 96"


def test_rules_of_the_language_model_name_its_own_checkpoint(tmp_path: Path) -> None:
    llm = language_alone().set_config("activation", "gelu").write(tmp_path, "llm.nemo")
    (problem,) = problems_of(projector_alone().write(tmp_path), llm)
    assert problem.at == "llm.nemo: model_config.yaml: activation"


def test_tensors_that_no_component_looks_at_are_listed(tmp_path: Path) -> None:
    """A visual checkpoint beside a language model may hold a language model too, and nothing else."""
    visual = Archive.read(CLASSIC)
    visual.members[CKPT] = saved(state_of(visual) | {"perception.x": torch.zeros(1)})
    (problem,) = problems_of(visual.write(tmp_path), language_alone().write(tmp_path, "llm.nemo"))
    assert "1 left over: perception.x" in problem.problem


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_the_command_takes_both(tmp_path: Path, command: str) -> None:
    visual = projector_alone().write(tmp_path, "visual.nemo")
    llm = language_alone().write(tmp_path, "llm.nemo")
    out = [str(tmp_path / "out")] if command == "convert" else []
    assert main([command, str(visual), *out]) == ExitCode.REFUSED
    assert main([command, str(visual), *out, "--llm", str(llm)]) == ExitCode.OK


def test_a_checkpoint_without_adapters_is_no_lora_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(Archive.read(CLASSIC).write(tmp_path))
    assert main(["inspect", path, "--lora", path]) == ExitCode.REFUSED
    assert "holds no adapter" in capsys.readouterr().out
