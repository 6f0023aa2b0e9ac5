"""No weight is lost without a word: each tensor of a checkpoint is consumed, and each parameter of the model is set."""

from __future__ import annotations

import pickle
import random
import re
import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from multimodal_api.engine import Dtype
from multimodal_api.families import Family, LlmType
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.inspection import inspect
from support import forms, upstream
from support.archives import CKPT, CLASSIC, CLIP, DISTRIBUTED, Archive
from support.states import State, saved, state_of

if TYPE_CHECKING:
    from pathlib import Path

STATE = state_of(Archive.read(CLASSIC))
METADATA = "model_weights/.metadata"
EMBEDDING = "model.embedding.word_embeddings.weight"
"""Without it there is no size of the vocabulary, which is an error of its own."""
INDEX = pickle.loads(Archive.read(DISTRIBUTED).members[METADATA])  # noqa: S301 (our own file)

OTHER_LAYERS = re.compile(r"vision_encoder.*\.layers\.[1-9]")
"""Of the tower: one stands for all."""


def problem_with(archive: Archive, folder: Path) -> str:
    paths = CheckpointPaths(visual=archive.write(folder))
    inspection, _, opened = inspect(paths, family=Family.NEVA, llm_type=LlmType.LLAMA, dtype=Dtype.FLOAT32, limits=None)
    opened.close()
    (problem,) = inspection.problems
    assert problem.reason is Reason.CHECKPOINT_WEIGHTS
    return str(problem)


def with_state(state: State) -> Archive:
    archive = Archive.read(CLASSIC)
    archive.members[CKPT] = saved(state)
    return archive


@pytest.mark.parametrize("name", STATE)
def test_each_missing_tensor_of_a_ckpt_is_noticed(tmp_path: Path, name: str) -> None:
    without = {other: tensor for other, tensor in STATE.items() if other != name}
    assert "missing" in problem_with(with_state(without), tmp_path)


@pytest.mark.parametrize("name", [name for name in INDEX.state_dict_metadata if not OTHER_LAYERS.search(name)])
def test_each_missing_tensor_of_a_distributed_checkpoint_is_noticed(tmp_path: Path, name: str) -> None:
    """Each of the trained tower too, whose own folder lies beside the archive and must not fill the gap."""
    archive = Archive.read(DISTRIBUTED)
    index = pickle.loads(archive.members[METADATA])  # noqa: S301 (our own file)
    del index.state_dict_metadata[name]
    archive.members[METADATA] = pickle.dumps(index)
    assert "missing" in problem_with(archive, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "perception.encoder.x",
        "model.decoder.layers.2.mlp.linear_fc2.weight",
        "model.decoder.layers.0.self_attention.linear_qkv.bias",
        "model.decoder.layers.0.mlp.linear_fc2.weight_scale",
        "model.embedding.word_embeddings.vision_encoder.vision_model.x",
        "model.embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector.4.weight",
        "model.embedding.word_embeddings.adapter_layer.another.weight",
        "output_layer.weight",
        "module.module.x",
    ],
)
def test_each_tensor_that_has_no_place_is_noticed(tmp_path: Path, name: str) -> None:
    found = problem_with(with_state(STATE | {name: torch.ones(96)}), tmp_path)
    assert "left over" in found or "which the model does not have" in found
    assert name.removeprefix("module.module.") in found


def test_a_wrong_prefix_is_noticed(tmp_path: Path) -> None:
    moved = {name.replace("model.decoder", "model.other"): tensor for name, tensor in STATE.items()}
    assert "left over: model.other" in problem_with(with_state(moved), tmp_path)


def test_layers_in_another_order_are_not_taken_for_these(tmp_path: Path) -> None:
    """A stage that is missing in the middle would number the layers behind it anew."""
    archive = forms.as_ranks(Archive.read(CLASSIC), STATE, tensor=1, pipeline=2)
    first = archive.members["tp_rank_00_pp_rank_000/model_weights.ckpt"]
    archive.members["tp_rank_00_pp_rank_001/model_weights.ckpt"] = first
    paths = CheckpointPaths(visual=archive.write(tmp_path))
    inspection, _, opened = inspect(paths, family=Family.NEVA, llm_type=LlmType.LLAMA, dtype=Dtype.FLOAT32, limits=None)
    opened.close()
    assert "two pipeline stages hold this tensor" in inspection.problems[0].problem


LAYERS = 2
MADE_OF = {"linear_qkv.weight": 3, "linear_fc1.weight": 2}
"""Parameters that one tensor sets, where it is not one."""


def everywhere(name: str) -> list[str]:
    """A tensor of all layers, so that it has a name in stacked forms too."""
    return [name.replace("{n}", str(layer)) for layer in range(LAYERS)] if "{n}" in name else [name]


def parameters_of(name: str) -> int:
    return len(everywhere(name)) * next((count for end, count in MADE_OF.items() if name.endswith(end)), 1)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("form", upstream.forms_of("neva"))
def test_both_lists_of_differences_are_told_in_every_form(tmp_path: Path, form: str, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 (chooses names)
    archive, state = upstream.read_classic(CLASSIC)
    archive.set_config("num_query_groups", 4)  # so many that four ranks can share them out
    state |= {name: torch.zeros(12 * 24, 96) for name in state if name.endswith("linear_qkv.weight")}
    names = sorted({re.sub(r"\.layers\.\d+\.", ".layers.{n}.", name) for name in state} - {EMBEDDING})
    lost = chance.sample(names, 3)
    places = ("model.decoder.layers.{n}.mlp.", "model.embedding.", "model.decoder.")
    added = [f"{place}{chance.randrange(10**6)}.weight" for place in chance.choices(places, k=4)]
    for name in (other for each in lost for other in everywhere(each)):
        del state[name]
    state |= {name: torch.ones(4) for each in added for name in everywhere(each)}
    shutil.copytree(CLIP, tmp_path / "clip")
    paths = upstream.FORMS[form].write(archive, state, tmp_path)
    inspection, _, opened = inspect(
        CheckpointPaths(visual=paths.visual, llm=paths.llm),
        family=Family.NEVA,
        llm_type=LlmType.LLAMA,
        dtype=Dtype.FLOAT32,
        limits=None,
    )
    opened.close()
    (problem,) = inspection.problems
    assert f"{sum(map(parameters_of, lost))} missing: " in problem.problem
    assert f"{sum(len(everywhere(name)) for name in added)} left over: " in problem.problem
