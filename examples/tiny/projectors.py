"""NeMo's projectors and its layouts of videos, as training has them. Names inside are those of NeMo's weights."""

from collections.abc import Callable, Sequence
from typing import Final

import torch
from tiny.prompts import SPECIALS, Parts
from torch import Tensor, nn
from torch.nn import functional

EPSILON: Final = 1e-5


class Merge(nn.Module):
    """Joins 2 x 2 patches: [pictures, side², width] to [pictures, ceil(side / 2)², 4 * width].

    An odd grid gets a row and a column of zeros. Cells come out column by column, as NeMo's do: its first cell is the
    top left one, its second the one below.
    """

    def forward(self, patches: Tensor) -> Tensor:
        """Join them."""
        pictures, amount, width = patches.shape
        side = round(amount**0.5)
        grid = functional.pad(patches.view(pictures, side, side, width), (0, 0, 0, side % 2, 0, side % 2))
        half = grid.shape[1] // 2
        cells = grid.view(pictures, half, 2, half, 2, width)
        return cells.permute(0, 3, 1, 2, 4, 5).reshape(pictures, half * half, 4 * width)


def make_projector(kind: str, width: int, hidden: int) -> nn.Module:
    """A projector of one of NeMo's kinds (`mm_mlp_adapter_type`) with fresh weights."""
    if kind == "linear":
        return nn.Linear(width, hidden)
    if kind == "mlp2x_gelu":
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
    if kind == "mlp_downsample":
        return nn.Sequential(
            Merge(),
            nn.LayerNorm(4 * width, eps=EPSILON),
            nn.Linear(4 * width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
        )
    raise ValueError(kind)


def all_frames(rows: Tensor) -> Tensor:
    """Every row of every frame: [videos, frames, rows, hidden] to [videos, frames * rows, hidden]."""
    return rows.flatten(1, 2)


def all_resolution(sample_frames: int) -> Callable[[Tensor], Tensor]:
    """LITA 1.5's layout: a few frames whole, then the mean row of every frame."""

    def arrange(rows: Tensor) -> Tensor:
        chosen = torch.linspace(0, rows.shape[1] - 1, sample_frames).round().long()
        return torch.cat([rows[:, chosen].flatten(1, 2), rows.mean(dim=2)], dim=1)

    return arrange


def all_resolution_parts(sample_frames: int, rows: int, frames: int) -> Parts:
    """How that stands in a prompt: each whole frame, and then the means, between start and end tokens."""
    return (*(SPECIALS[4], rows, SPECIALS[5]) * sample_frames, SPECIALS[8], frames, SPECIALS[9])


class Projection(nn.Module):
    """Projector and layout: features of videos (or pictures), [frames, patches, width] each, to rows of the prompt."""

    def __init__(self, projector: nn.Module, arrange: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.projector = projector
        self._arrange = arrange

    def forward(self, seen: Sequence[Tensor]) -> Tensor:
        """The rows of all videos, [rows, hidden]."""
        features = torch.stack(list(seen)).float()
        rows = self.projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return self._arrange(rows).flatten(0, 1)
