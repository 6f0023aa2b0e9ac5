from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_modeling.projector import JoinSquares, Projector
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


def test_identity_has_no_weights_and_does_nothing(tmp_path: Path) -> None:
    x = torch.randn(2, 3, IN)
    assert torch.equal(load(write(tmp_path, "identity", {}))(x), x)


# By NeMo's arithmetic: rows 2a and 2a+1, columns 2b and 2b+1 of the picture; b moves slower than a. None is a zero.
SQUARES = {
    16: [[0, 1, 4, 5], [8, 9, 12, 13], [2, 3, 6, 7], [10, 11, 14, 15]],
    9: [[0, 1, 3, 4], [6, 7, None, None], [2, None, 5, None], [8, None, None, None]],
    1: [[0, None, None, None]],
}


@pytest.mark.parametrize("tokens", SQUARES)
def test_squares_of_tokens_are_joined_column_by_column(tokens: int) -> None:
    numbers = torch.arange(tokens, dtype=torch.float32)[:, None].expand(tokens, 2) + 1
    wanted = [[0 if place is None else place + 1 for place in square] for square in SQUARES[tokens]]
    found = JoinSquares(by_column=True)(numbers)
    assert found.tolist() == [[value for value in square for _ in range(2)] for square in wanted]
    batch = torch.stack([numbers, 100 * numbers])
    assert torch.equal(JoinSquares(by_column=True)(batch), torch.stack([found, 100 * found]))


def test_nemo_2_joins_line_by_line() -> None:
    squares = JoinSquares(by_column=False)(torch.arange(16.0)[:, None]).tolist()
    assert squares == [SQUARES[16][place] for place in (0, 2, 1, 3)]


def test_downsampling_is_join_norm_linear_gelu_linear(tmp_path: Path) -> None:
    torch.manual_seed(1)
    wide = 4 * IN
    shapes = {"1.weight": (wide,), "1.bias": (wide,), "2.weight": (OUT, wide), "2.bias": (OUT,)}
    shapes |= {"4.weight": (OUT, OUT), "4.bias": (OUT,)}
    state = {f"mm_projector.{name}": torch.randn(*shape) for name, shape in shapes.items()}
    x = torch.randn(2, 49, IN)
    y = JoinSquares(by_column=True)(x)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    y = y * state["mm_projector.1.weight"] + state["mm_projector.1.bias"]
    y = functional.linear(y, state["mm_projector.2.weight"], state["mm_projector.2.bias"])
    y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
    wanted = functional.linear(y, state["mm_projector.4.weight"], state["mm_projector.4.bias"])
    torch.testing.assert_close(load(write(tmp_path, "mlp_downsample", state))(x), wanted)


@pytest.mark.parametrize(("kind", "tokens", "rows"), [("mlp_downsample", 729, 196), ("mlp_downsample", 576, 144)])
def test_rows_of_a_picture(kind: str, tokens: int, rows: int) -> None:
    assert ProjectorConfig(kind=kind, input_size=1, hidden_size=1).rows(tokens) == rows
    assert JoinSquares(by_column=True)(torch.zeros(1, tokens, 1)).shape == (1, rows, 4)


@pytest.mark.parametrize("kind", ["qformer", "mlp0x_gelu", "mlpx_gelu", "mlp2x_relu"])
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
