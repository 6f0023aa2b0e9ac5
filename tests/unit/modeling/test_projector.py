from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_modeling.projector import Projector
from multimodal_recipes.recipe import PROJECTOR_DIR, ProjectorConfig

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

IN, OUT = 6, 4


def weights(depth: int) -> dict[str, Tensor]:
    """An mlp's tensors under NeMo's numbers: the activations between take every second one."""
    torch.manual_seed(depth)
    widths = [IN, *[OUT] * depth]
    return {
        f"mm_projector.{2 * layer}.{kind}": torch.randn(*shape)
        for layer in range(depth)
        for kind, shape in (("weight", (OUT, widths[layer])), ("bias", (OUT,)))
    }


def write(folder: Path, kind: str, state: dict[str, Tensor]) -> Path:
    projector = folder / PROJECTOR_DIR
    projector.mkdir()
    config = ProjectorConfig(kind=kind, input_size=IN, hidden_size=OUT)
    (projector / "config.json").write_text(config.model_dump_json(by_alias=True))
    save_file(state, projector / "model.safetensors")
    return folder


def load(folder: Path) -> Projector:
    return Projector.load(folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_an_mlp_of_any_depth_is_linear_layers_with_the_exact_gelu_between(tmp_path: Path, depth: int) -> None:
    state = weights(depth)
    x = torch.randn(2, 3, IN)
    wanted = x
    for layer in range(depth):
        if layer:
            wanted = 0.5 * wanted * (1 + torch.erf(wanted / 2**0.5))
        name = f"mm_projector.{2 * layer}"
        wanted = functional.linear(wanted, state[f"{name}.weight"], state[f"{name}.bias"])
    torch.testing.assert_close(load(write(tmp_path, f"mlp{depth}x_gelu", state))(x), wanted)


def test_linear_is_one_layer_without_a_number(tmp_path: Path) -> None:
    state = {"mm_projector.weight": torch.randn(OUT, IN), "mm_projector.bias": torch.randn(OUT)}
    x = torch.randn(7, IN)
    torch.testing.assert_close(
        load(write(tmp_path, "linear", state))(x),
        functional.linear(x, state["mm_projector.weight"], state["mm_projector.bias"]),
    )


@pytest.mark.parametrize("kind", ["mlp_downsample", "identity", "mlp0x_gelu", "mlpx_gelu", "mlp2x_relu"])
def test_other_kinds_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ProductError, match=kind) as caught:
        load(write(tmp_path, kind, weights(1)))
    assert caught.value.failure.reason is Reason.UNSUPPORTED_MODEL


@pytest.mark.parametrize("damage", ["a tensor less", "a tensor more", "another shape", "no weights", "no config"])
def test_files_that_contradict_each_other_are_a_damaged_engine(tmp_path: Path, damage: str) -> None:
    state = weights(2)
    match damage:
        case "a tensor less":
            del state["mm_projector.0.bias"]
        case "a tensor more":
            state["mm_projector.4.bias"] = torch.zeros(OUT)
        case "another shape":
            state["mm_projector.0.bias"] = torch.zeros(OUT + 1)
    folder = write(tmp_path, "mlp2x_gelu", state)
    if damage == "no weights":
        (folder / PROJECTOR_DIR / "model.safetensors").unlink()
    if damage == "no config":
        (folder / PROJECTOR_DIR / "config.json").unlink()
    with pytest.raises(ProductError) as caught:
        load(folder)
    assert caught.value.failure.reason is Reason.ENGINE_CORRUPT
