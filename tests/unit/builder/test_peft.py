"""Folders of peft: scales as peft computes them, and every way in which a folder is refused."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from multimodal_api.errors import ProductError
from multimodal_api.families import LlmType
from multimodal_builder.checkpoints.peft import open_peft
from multimodal_builder.main import main
from support.archives import CLASSIC, Archive

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_builder.checkpoints.peft import PeftFolder

LAYER = "model.layers.11.self_attn.q_proj"
A, B = torch.ones(2, 6), torch.ones(8, 2)


def tensors(layer: str = LAYER) -> dict[str, torch.Tensor]:
    return {f"base_model.model.{layer}.lora_A.weight": A.clone(), f"base_model.model.{layer}.lora_B.weight": B.clone()}


def write(folder: Path, state: dict[str, torch.Tensor] | None = None, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors() if state is None else state, folder / "adapter_model.safetensors")
    return folder


def read(folder: Path) -> PeftFolder:
    with ExitStack() as opened:
        return open_peft(folder, opened)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 4.0),
        ({"use_rslora": True}, 8 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 3}}, 1.5),
        ({"alpha_pattern": {"proj": 3}}, 4.0),  # only whole parts of a name
        ({"alpha_pattern": {"k_proj": 3, "layers.11.self_attn.q_proj": 5}}, 2.5),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 3}}, 4.0),
        ({"alpha_pattern": {r"layers.\d+.self_attn.(k_proj|q_proj)": 3}}, 1.5),
        ({"alpha_pattern": {"^model.layers.11.*": 3}}, 1.5),
        ({"r": 16, "rank_pattern": {"q_proj": 2}}, 4.0),
        ({"r": 16, "rank_pattern": {"q_proj": 2}, "use_rslora": True}, 8 / 2**0.5),
    ],
    ids=str,
)
def test_the_scale_is_peft_s(tmp_path: Path, settings: dict[str, Any], scale: float) -> None:
    change = read(write(tmp_path / "adapter", **settings)).changes[LAYER]
    assert change.scale == pytest.approx(scale)
    assert change.shape == (8, 6)


@pytest.mark.parametrize(
    ("settings", "state"),
    [
        ({"fan_in_fan_out": True}, None),
        ({}, {"base_model.model.embed.lora_embedding_A": A, "base_model.model.embed.lora_embedding_B": B}),
    ],
    ids=["turned", "embedding"],
)
def test_some_weights_have_inputs_in_front(
    tmp_path: Path, settings: dict[str, Any], state: dict[str, torch.Tensor] | None
) -> None:
    (change,) = read(write(tmp_path / "adapter", state, **settings)).changes.values()
    assert (change.transposed, change.shape) == (True, (6, 8))


@pytest.mark.parametrize(
    ("settings", "state", "says"),
    [
        ({"peft_type": "IA3"}, None, "is no LoRA"),
        ({"use_dora": True}, None, "means DoRA"),
        ({"modules_to_save": ["lm_head"]}, None, "trained as a whole"),
        ({"bias": "lora_only"}, None, "trained biases"),
        ({"lora_bias": True}, None, "biases of LoRA's matrices"),
        ({"init_lora_weights": "pissa_niter_4"}, None, "changes the model's own weights"),
        ({"target_parameters": ["experts.gate_up_proj"]}, None, "that are no layers"),
        ({"r": 0}, None, "r: Input should be"),
        ({"r": 4}, None, "are none of rank 4"),
        ({"alpha_pattern": {"((a*)*)*b": 3}}, None, "is not taken"),
        ({"alpha_pattern": {".*.*.*.*": 3}}, None, "is not taken"),
        ({"alpha_pattern": {"(": 3}}, None, "is no pattern"),
        ({"rank_pattern": {"q_proj": 0}}, None, "is not taken"),
        ({}, {}, "holds no adapter"),
        ({}, {"base_model.model.lm_head.weight": A}, "is no matrix of LoRA"),
        ({}, {f"base_model.model.{LAYER}.lora_magnitude_vector": A}, "is no matrix of LoRA"),
        ({}, {f"base_model.model.{LAYER}.lora_A.weight": A}, "other half"),
        ({}, {name: tensor.long() for name, tensor in tensors().items()}, "no types of weights"),
        ({}, {name: tensor[0].clone() for name, tensor in tensors().items()}, "are none of rank 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_sum_of_weights_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], state: dict[str, torch.Tensor] | None, says: str
) -> None:
    with pytest.raises(ProductError) as caught:
        read(write(tmp_path / "adapter", state, **settings))
    assert says in str(caught.value)
    assert "adapter" in caught.value.failure.at
    assert caught.value.failure.remedy


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (write(tmp_path / "adapter") / "adapter_model.safetensors").unlink()
    with pytest.raises(ProductError, match="adapter_model"):
        read(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("layer", "says"),
    [(LAYER, "the model has no such layer"), ("model.layers.0.self_attn.q_proj", "changes [8, 6], but")],
    ids=["another layer", "another shape"],
)
def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layer: str, says: str
) -> None:
    path = Archive.read(CLASSIC).write(tmp_path)
    lora = write(tmp_path / "adapter", tensors(layer))
    assert main(["inspect", str(path), "--lora", str(lora), "--llm-type", LlmType.LLAMA]) != 0
    assert says in " ".join(capsys.readouterr().out.split())
