"""What all training scripts share: progress, the optimiser's rate, packed questions, the tower's task."""

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tiny import pictures
from torch import Tensor, nn
from torch.nn import functional

QUIET: Final = 10.0  # seconds between two lines of progress
UNLEARNED: Final = -100  # cross_entropy's mark for positions without a target
WARM_UP: Final = 100  # steps

CELLS: Final = pictures.GRID**2
CELL_LABELS: Final = (1 + len(pictures.SHAPES), 1 + len(pictures.COLOURS), 1 + pictures.MAX_COUNT, CELLS)
"""What a tower must tell of a cell: its shape and colour, how many of them the picture shows, which cell it is."""


class Progress:
    """Prints what happens with the time since the start, at most one line in ten seconds unless it matters."""

    def __init__(self) -> None:
        self._start = self._printed = time.monotonic()

    def say(self, text: str) -> None:
        """Print `text`."""
        self._printed = time.monotonic()
        print(f"{self._printed - self._start:6.0f} s  {text}", flush=True)

    def step(self, name: str, step: int, steps: int, loss: Tensor) -> None:
        """Print how far a training step is, if the last line is old enough or it is the last step."""
        if step + 1 == steps or time.monotonic() - self._printed > QUIET:
            self.say(f"{name}: step {step + 1} of {steps}, loss {loss.item():.4f}")


def optimise(parameters: Sequence[nn.Parameter], rate: float, steps: int) -> Iterator[int]:
    """Yield each step's number with gradients cleared, then apply them; the rate warms up and falls to zero."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        scale = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        optimizer.zero_grad(set_to_none=True)
        yield step
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


@torch.no_grad()
def round_to_bfloat16(module: nn.Module) -> None:
    """Leave only values that bfloat16 can hold, so that an archive may store them in half the bytes."""
    for parameter in module.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))


def cell_labels(scenes: Sequence[pictures.Scene]) -> Tensor:
    """What stands in each cell of each picture, [pictures, cells, labels]."""
    cells = torch.zeros(len(scenes), CELLS, len(CELL_LABELS), dtype=torch.long)
    cells[..., 3] = torch.arange(CELLS)
    for index, scene in enumerate(scenes):
        for group in scene.groups:
            shape, colour = pictures.SHAPES.index(group.shape), list(pictures.COLOURS).index(group.colour)
            places = [row * pictures.GRID + column for row, column in group.cells]
            cells[index, places, :3] = torch.tensor([1 + shape, 1 + colour, group.count])
    return cells


def by_cell(features: Tensor) -> Tensor:
    """Join the patches of each cell: [pictures, patches, width] to [pictures, cells, patches per cell * width]."""
    grid, inside = pictures.GRID, math.isqrt(features.shape[1]) // pictures.GRID
    split: Tensor = features.unflatten(1, (grid, inside, grid, inside))
    return split.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


def cell_loss(guess: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of all labels.

    Args:
        guess: [pictures, cells, sum of CELL_LABELS].
        labels: As from `cell_labels`.
    """
    parts = guess.split(CELL_LABELS, dim=-1)
    losses = [functional.cross_entropy(part.flatten(0, 1), labels[..., i].flatten()) for i, part in enumerate(parts)]
    return torch.stack(losses).sum()


@dataclass(frozen=True, slots=True)
class Packed:
    """Media, each followed by several questions with answers that do not see one another.

    So a medium is read once for all its questions, and every question is still seen exactly as it will be asked: at
    its own positions, after the medium alone. Shapes: `sees` [media, 1, tokens, tokens], the others [media, tokens];
    `targets` are UNLEARNED where nothing is learned.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    sees: Tensor


Asked = tuple[Sequence[int], Sequence[int]]
"""A question's ids behind the common beginning, and its answer's."""


def pack(beginnings: Sequence[Sequence[int]], asked: Sequence[Sequence[Asked]], filler: int) -> Packed:
    """Pack the questions of each medium behind the prompt's common beginning.

    Args:
        beginnings: Per medium the ids that all its prompts begin with, the medium's positions among them.
        asked: Per medium its questions.
        filler: The id behind shorter rows; nothing sees it.
    """
    ids: list[list[int]] = []
    positions: list[list[int]] = []
    targets: list[list[int]] = []
    turns: list[list[int]] = []
    for beginning, listed in zip(beginnings, asked, strict=True):
        shared = len(beginning)
        ids.append(list(beginning))
        positions.append(list(range(shared)))
        targets.append([UNLEARNED] * shared)
        turns.append([0] * shared)
        for turn, (prompt, answer) in enumerate(listed, start=1):
            length = len(prompt) + len(answer)
            ids[-1] += [*prompt, *answer]
            positions[-1] += range(shared, shared + length)
            # The token before an answer foretells the answer's first, and so on; its last token foretells nothing.
            targets[-1] += [UNLEARNED] * (len(prompt) - 1) + [*answer] + [UNLEARNED]
            turns[-1] += [turn] * length
    of_turn = _rectangle(turns, -1)
    same = (of_turn[:, None, :] == of_turn[:, :, None]) | (of_turn == 0)[:, None, :]
    causal = torch.ones(of_turn.shape[1], of_turn.shape[1]).tril().bool()
    return Packed(
        ids=_rectangle(ids, filler),
        positions=_rectangle(positions, 0),
        targets=_rectangle(targets, UNLEARNED),
        sees=(same & causal)[:, None],
    )


def _rectangle(rows: Sequence[list[int]], filler: int) -> Tensor:
    """Rows of unequal length as one tensor."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def take_turns(possible: dict[str, pictures.Question], counts: dict[str, int], rng: random.Random) -> str:
    """Choose the kind of question asked least so far, so that all are asked equally often; counts it."""
    fewest = min(counts.get(kind, 0) for kind in possible)
    kind = rng.choice(sorted(kind for kind in possible if counts.get(kind, 0) == fewest))
    counts[kind] = counts.get(kind, 0) + 1
    return kind
