"""Projectors: from the tower's width to the language model's."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_modeling.pretrained import corrupt
from multimodal_recipes.recipe import JOINING_KINDS, PROJECTOR_DIR, PROJECTOR_KINDS, ProjectorConfig

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


class Projector(nn.Module):
    """One projector; its parameters are named `mm_projector.…` as in NeMo."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.mm_projector = make_projector(config)

    @classmethod
    def load(cls, model_dir: Path, *, dtype: torch.dtype, device: torch.device) -> Projector:
        """Read `projector/` of a canonical model.

        Raises:
            ProductError: a file is missing or broken, or weights and configuration disagree.
        """
        folder = model_dir / PROJECTOR_DIR
        try:
            config = ProjectorConfig.model_validate_json((folder / "config.json").read_bytes())
            state = load_file(folder / "model.safetensors")
            with torch.device("meta"):
                projector = cls(config)
            projector.load_state_dict(state, assign=True)
        except (OSError, ValidationError, SafetensorError, RuntimeError) as error:
            raise corrupt(str(folder), str(error)) from error
        return projector.to(device=device, dtype=dtype).eval().requires_grad_(requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map [..., tokens, input_size] to [..., rows, hidden_size]; only the kinds that join make fewer rows."""
        projected: Tensor = self.mm_projector(features)
        return projected


class JoinSquares(nn.Module):
    """The first step of the kinds that join: each 2 by 2 tokens of a picture become one of four times the width.

    NeMo 1 never undoes the transposition inside this step, so that its joined tokens come column by column: the tokens
    0 to 15 of a 4 by 4 picture become (0, 1, 4, 5), (8, 9, 12, 13), (2, 3, 6, 7), (10, 11, 14, 15). NeMo 2 does
    (`DownSampleBlock` of `nemo/collections/vlm/vision/base.py`): there the second and the third change places.
    """

    def __init__(self, *, by_column: bool) -> None:
        super().__init__()
        self.by_column = by_column

    def forward(self, features: Tensor) -> Tensor:
        """Map [..., edge * edge, width] to [..., ceil(edge / 2) ** 2, 4 * width]; an odd edge grows by zeros."""
        *lead, tokens, width = features.shape
        edge = isqrt(tokens)
        grid = features.reshape(-1, edge, edge, width)
        grid = functional.pad(grid, (0, 0, 0, edge % 2, 0, edge % 2))
        half = grid.shape[1] // 2
        squares = grid.reshape(-1, half, 2, half, 2, width).transpose(2, 3)  # [pictures, row, column, 2, 2, width]
        if self.by_column:
            squares = squares.transpose(1, 2)
        return squares.reshape(*lead, half * half, 4 * width)


def make_projector(config: ProjectorConfig) -> nn.Module:
    """Construct the layers that NeMo builds for a `mm_mlp_adapter_type`; every Linear has a bias, GELU is the erf form.

    Raises:
        ProductError: a kind that NeMo does not have.
    """
    width, hidden = config.input_size, config.hidden_size
    match config.kind, config.mlp_depth:
        case "identity", _:
            return nn.Identity()
        case "linear", _:
            return nn.Linear(width, hidden)
        case kind, _ if kind in JOINING_KINDS:
            wide = 4 * width
            inner = (nn.LayerNorm(wide), nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, hidden))
            return nn.Sequential(JoinSquares(by_column=kind == "mlp_downsample"), *inner)
        case _, int(depth):
            layers: list[nn.Module] = [nn.Linear(width, hidden)]
            for _ in range(depth - 1):
                layers += [nn.GELU(), nn.Linear(hidden, hidden)]
            return nn.Sequential(*layers)
        case kind, _:
            raise ProductError(
                Reason.UNSUPPORTED_MODEL,
                at="mm_cfg.mm_mlp_adapter_type",
                problem=f"{kind!r} is no projector",
                remedy=f"use a checkpoint whose projector is {PROJECTOR_KINDS}",
            )
