"""What SALM checkpoints say of themselves, and every configuration that this version does not compute."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

from multimodal_api.engine import Dtype, Limits
from multimodal_api.errors import ProductError
from multimodal_api.families import Family, LlmType
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.checkpoints.speech_config import SpeechConfig, SpeechSection
from multimodal_builder.inspection import Inspection, inspect
from multimodal_builder.salm import prompt_template
from multimodal_builder.speech import audio_recipe
from multimodal_builder.table import as_table
from multimodal_recipes.prompt import MediaSlot, Medium, Turn, render
from multimodal_recipes.recipe import EdgePadding
from support.archives import CKPT, Archive
from support.salm_writer import Perception, split, whole
from support.sounds import SALM
from support.states import saved

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor


@pytest.fixture(scope="module")
def perception() -> Perception:
    return Perception.random()


@pytest.fixture
def archive(perception: Perception) -> Archive:
    return whole(perception)


def look(visual: Path, **others: Any) -> Inspection:
    limits = others.pop("limits", None)
    paths = CheckpointPaths(visual=visual, **others)
    inspection, plan, opened = inspect(
        paths, family=Family.SALM, llm_type=LlmType.LLAMA, dtype=Dtype.FLOAT32, limits=limits
    )
    opened.close()
    assert (plan is None) == bool(inspection.problems)
    return inspection


def write(folder: Path, archive: Archive) -> Path:
    path = folder / "salm.nemo"
    path.write_bytes(archive.to_bytes())
    return path


def test_a_whole_archive_is_understood(tmp_path: Path, archive: Archive) -> None:
    found = look(write(tmp_path, archive), limits=Limits(vision_max_batch_size=1))
    assert found.problems == ()
    assert (found.sample_rate, found.samples_per_token, found.image_size) == (16_000, 64 * 160, None)
    assert found.memory is not None
    assert "16000 Hz, 0.64 s per token" in as_table(found)


def test_the_pieces_of_nemos_script_are_understood(tmp_path: Path, archive: Archive) -> None:
    speech, llm, lora = split(archive, tmp_path)
    assert look(speech, llm=llm).problems == ()
    (problem,) = look(speech).problems
    assert (problem.reason, "--llm" in problem.remedy) == (Reason.CHECKPOINT_NOT_FOUND, True)
    (problem,) = look(speech, llm=llm, lora=lora).problems
    assert "holds no adapter" in problem.problem


@pytest.mark.parametrize(
    ("key", "value", "reason", "says"),
    [
        ("perception.encoder.subsampling", "striding", Reason.UNSUPPORTED_MODEL, "'striding'"),
        ("perception.encoder.subsampling_factor", 6, Reason.UNSUPPORTED_MODEL, "is 6"),
        ("perception.encoder.self_attention_model", "abs_pos", Reason.UNSUPPORTED_MODEL, "'abs_pos'"),
        ("perception.encoder.att_context_size", [70, 13], Reason.UNSUPPORTED_MODEL, "[70, 13]"),
        ("perception.encoder.conv_norm_type", "layer_norm", Reason.UNSUPPORTED_MODEL, "'layer_norm'"),
        ("perception.encoder.feat_out", 64, Reason.UNSUPPORTED_MODEL, "is 64"),
        ("perception.encoder.feat_in", 128, Reason.CHECKPOINT_CONFIG, "what comes before gives 80"),
        ("perception.encoder.conv_kernel_size", 8, Reason.CHECKPOINT_CONFIG, "has no middle"),
        ("perception.encoder.n_heads", 5, Reason.CHECKPOINT_CONFIG, "for each head"),
        ("perception.modality_adapter.feat_in", 1024, Reason.CHECKPOINT_CONFIG, "what comes before gives 32"),
        (
            "perception.modality_adapter._target_",
            "nemo.collections.multimodal.speech_llm.modules.perception_modules.PoolingMLPConnectors",
            Reason.UNSUPPORTED_MODEL,
            "PoolingMLPConnectors",
        ),
        ("perception.preprocessor.normalize", "all_features", Reason.UNSUPPORTED_MODEL, "'all_features'"),
        ("perception.preprocessor.window", "hamming", Reason.UNSUPPORTED_MODEL, "'hamming'"),
        ("perception.preprocessor.features", 64, Reason.CHECKPOINT_CONFIG, "what comes before gives 64"),
        ("perception.preprocessor.highfreq", 7_600, Reason.CHECKPOINT_CONFIG, "is not what perception.preprocessor"),
        ("perception.preprocessor.window_size", 0.02, Reason.CHECKPOINT_CONFIG, "is not what perception.preprocessor"),
        ("perception.use_multi_layer_feat", True, Reason.UNSUPPORTED_MODEL, "True"),
        ("perception.output_dim", 64, Reason.CHECKPOINT_CONFIG, "is 96, but the speech encoder was trained for 64"),
        ("perception.encoder.n_layers", 4, Reason.CHECKPOINT_WEIGHTS, "missing: layers.3."),
        ("perception.encoder.use_bias", False, Reason.CHECKPOINT_WEIGHTS, "left over: perception.encoder.layers.0"),
        ("perception.modality_adapter", ..., Reason.CHECKPOINT_CONFIG, "modality_adapter is missing"),
        ("data.train_ds.add_bos", True, Reason.UNSUPPORTED_MODEL, "True"),
        ("data.train_ds.prompt_template", "{answer}", Reason.CHECKPOINT_CONFIG, "no question and an answer"),
        ("peft.lora_tuning.alpha", -1, Reason.CHECKPOINT_CONFIG, "alpha is -1"),
    ],
)
def test_a_wrong_configuration_is_explained(
    tmp_path: Path, archive: Archive, key: str, value: object, reason: Reason, says: str
) -> None:
    problems = look(write(tmp_path, archive.set_config(key, value))).problems
    assert says in "\n".join(map(str, problems))
    assert reason in {problem.reason for problem in problems if says in str(problem)}
    assert all(problem.at and problem.remedy for problem in problems)


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.__delitem__(name)


def with_one(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.update({name: torch.zeros(1)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("perception.encoder.layers.1.self_attn.pos_bias_u"), "missing: layers.1.self_attn.bias_u"),
        (without("perception.proj.bias"), "missing: mm_projector.bias"),
        (with_one("perception.spec_augmentation.mask"), "left over: perception.spec_augmentation.mask"),
        (with_one("perception.modality_adapter.out_proj.weight"), "left over: perception.modality_adapter.out_proj"),
        (with_one("speech.weight"), "left over: speech.weight"),
    ],
    ids=["missing", "no bias", "unknown in perception", "unknown in the adapter", "unknown"],
)
def test_every_tensor_is_asked_for(
    tmp_path: Path, archive: Archive, change: Callable[[dict[str, Tensor]], None], says: str
) -> None:
    stored = torch.load(io.BytesIO(archive.members[CKPT]), weights_only=False)
    state = {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)}
    change(state)
    archive.members[CKPT] = saved(state)
    (problem,) = look(write(tmp_path, archive)).problems
    assert problem.reason is Reason.CHECKPOINT_WEIGHTS
    assert says in problem.problem


@pytest.mark.parametrize(
    ("version", "padding"),
    [
        ("", EdgePadding.REFLECT),
        ("1.23.0", EdgePadding.REFLECT),
        ("2.4.1", EdgePadding.REFLECT),
        ("2.5.0rc0", EdgePadding.ZERO),
        ("3.0", EdgePadding.ZERO),
    ],
)
def test_the_edges_of_a_sound_are_those_of_the_version(
    perception: Perception, version: str, padding: EdgePadding
) -> None:
    config = SpeechConfig.model_validate({"perception": perception.config(), "nemo_version": version})
    wanted = SALM.model_copy(update={"mel": SALM.mel.model_copy(update={"padding": padding})})
    assert audio_recipe(config) == wanted


@pytest.mark.parametrize(
    ("template", "keys", "text"),
    [
        ("Q: {context}\nA: {answer}", {}, "Q: hi\nA:"),
        ("{question} {output}", {"context_key": "question", "answer_key": "output"}, "hi"),
        ("[INST] {context} [/INST] {answer}", {}, "[INST] hi [/INST]"),
    ],
)
def test_the_question_stands_as_in_training(template: str, keys: dict[str, str], text: str) -> None:
    """NeMo takes blanks off the end of the question's text, and gives them to the answer's."""
    made = prompt_template(SpeechSection.model_validate({"prompt_template": template, **keys}), "config")
    asked = Turn((Medium((MediaSlot(2),)), "hi"), answer="Hello")
    assert render(made, (asked,)) == (MediaSlot(2), f"{text} Hello")


@pytest.mark.parametrize("template", ["{context}", "{answer} {context}", "{context} {answer}.", "Q: A: {answer}"])
def test_a_template_without_its_places_is_refused(template: str) -> None:
    with pytest.raises(ProductError, match=re.escape("data.train_ds.prompt_template")):
        prompt_template(SpeechSection(prompt_template=template), "config")
