"""Archives that see, with any tower and projector, and what their pictures must become.

The archives are the tiny NeVA's, projector and tower replaced; torch reads and writes them, no code of the product.
What they must become is computed from transformers' towers by plain arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tiny import nemo_writer
from transformers import AutoModel, CLIPVisionModel, SiglipVisionModel

from multimodal_api.build import ExitCode
from multimodal_builder.main import main
from multimodal_modeling.model import read_recipe
from multimodal_modeling.vision import MediaEncoder
from support import towers
from support.archives import CKPT, CLASSIC, Archive
from support.states import saved, state_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from multimodal_recipes.recipe import Recipe

HIDDEN = 96  # of the tiny NeVA's language model
TOLERANCE = 1e-5
"""Largest difference, relative to the largest value."""
WRONG = 1e-2
"""A mistake moves values by more than this."""

Tower = CLIPVisionModel | SiglipVisionModel


@dataclass(frozen=True)
class Case:
    """One archive."""

    make: Callable[[int], Tower]
    projector: str = "mlp2x_gelu"
    image_size: int = 48
    layer: int = -2
    feature: str = "patch"
    class_tokens: int = 1
    form: str = "old"
    """Of the tower's folder."""
    trained: bool = False
    """Whether the archive holds the tower; then the folder holds another one."""
    rows: int = 36


def projector_state(kind: str) -> dict[str, Tensor]:
    """NeMo's names behind `mm_projector`, with random values."""
    width = towers.WIDTH
    match kind:
        case "linear":
            sizes = {"": (HIDDEN, width)}
        case "mlp_downsample" | "vila_downsample_mlp":
            sizes = {"2.": (HIDDEN, 4 * width), "4.": (HIDDEN, HIDDEN)}
        case _:
            sizes = {f"{2 * index}.": (HIDDEN, HIDDEN if index else width) for index in range(int(kind[3]))}
    generator = torch.Generator().manual_seed(9)
    state = {}
    for prefix, size in sizes.items():
        state[f"{prefix}weight"] = torch.randn(size, generator=generator) * 0.1
        state[f"{prefix}bias"] = torch.randn(size[0], generator=generator)
    if "downsample" in kind:
        state |= {f"1.{name}": torch.randn(4 * width, generator=generator) for name in ("weight", "bias")}
    return state


def project(kind: str, state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """A projector's arithmetic on the [tokens, width] of one picture."""

    def linear(x: Tensor, prefix: str) -> Tensor:
        return x @ state[f"{prefix}weight"].T + state[f"{prefix}bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    if kind == "linear":
        return linear(tokens, "")
    if "downsample" in kind:
        x = join(tokens, rows_first=kind == "vila_downsample_mlp")
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-5)
        x = linear(x * state["1.weight"] + state["1.bias"], "2.")
        return linear(gelu(x), "4.")
    for index in range(int(kind[3])):
        tokens = linear(gelu(tokens) if index else tokens, f"{2 * index}.")
    return tokens


def join(tokens: Tensor, *, rows_first: bool) -> Tensor:
    """The 2 by 2 squares of a picture, line by line or, as NeMo 1 has them, column by column."""
    edge = int(len(tokens) ** 0.5)
    nothing = torch.zeros(tokens.shape[1])

    def at(row: int, column: int) -> Tensor:
        return tokens[row * edge + column] if row < edge and column < edge else nothing

    squares = []
    for outer in range(0, edge, 2):
        for inner in range(0, edge, 2):
            row, column = (outer, inner) if rows_first else (inner, outer)
            four = [at(row, column), at(row, column + 1), at(row + 1, column), at(row + 1, column + 1)]
            squares.append(torch.cat(four))
    return torch.stack(squares)


@torch.inference_mode()
def reference(case: Case, tower: Tower, state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    features = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[case.layer]
    dropped = case.class_tokens if case.feature == "patch" else 0
    return torch.stack([project(case.projector, state, picture[dropped:]) for picture in features])


def write(folder: Path, case: Case, tower: Tower, state: dict[str, Tensor]) -> Path:
    archive = Archive.read(CLASSIC)
    archive.set_config("mm_cfg.mm_mlp_adapter_type", case.projector)
    for key, value in {
        "from_pretrained": "tower",
        "patch_dim": towers.PATCH,
        "hidden_size": towers.WIDTH,
        "crop_size": [case.image_size, case.image_size],
        "vision_select_layer": case.layer,
        "vision_select_feature": case.feature,
        "class_token_length": case.class_tokens,
        "freeze": not case.trained,
    }.items():
        archive.set_config(f"mm_cfg.vision_encoder.{key}", value)
    weights = {name: value for name, value in state_of(archive).items() if "mm_projector" not in name}
    weights |= {nemo_writer.PROJECTOR + name: tensor for name, tensor in state.items()}
    other = tower
    if case.trained:
        weights |= {nemo_writer.TOWER + name: tensor for name, tensor in towers.names_of(tower).items()}
        other = AutoModel.from_config(tower.config)
    archive.members[CKPT] = saved(weights)
    path = archive.write(folder)
    towers.write_folder(folder / "tower", other, case.form)
    return path


def convert(path: Path, out: Path, *options: str) -> Recipe:
    assert main(["convert", str(path), str(out), *options]) == ExitCode.OK
    return read_recipe(out)


def encode(out: Path, recipe: Recipe, pixels: Tensor) -> Tensor:
    encoder = MediaEncoder.load(out, recipe.seeing(), dtype=torch.float32, device=torch.device("cpu"))
    return encoder.encode(pixels)


def pixels_for(case: Case) -> Tensor:
    return torch.randn(2, 3, case.image_size, case.image_size, generator=torch.Generator().manual_seed(2))


def difference(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())
