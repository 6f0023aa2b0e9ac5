"""What rows of pictures and videos should tell: labels for heads that help the training and are thrown away."""

from typing import Final

import torch
from tiny.pictures import COLOURS, GRID, SHAPES, Scene
from tiny.videos import DIRECTIONS, Clip, Thing
from torch import Tensor

COLOUR_NAMES: Final = tuple(COLOURS)
PAIRS: Final = len(SHAPES) * len(COLOUR_NAMES)
LOOKS: Final = len(SHAPES) + len(COLOUR_NAMES) + PAIRS
DOINGS: Final = (*DIRECTIONS, "still", "first", "last")
UNKNOWN: Final = float("nan")
"""Where nothing is asked of a row."""


def _pair(shape: str, colour: str) -> int:
    return SHAPES.index(shape) * len(COLOUR_NAMES) + COLOUR_NAMES.index(colour)


def _look(shape: str, colour: str) -> Tensor:
    look = torch.zeros(LOOKS)
    look[SHAPES.index(shape)] = look[len(SHAPES) + COLOUR_NAMES.index(colour)] = 1
    look[len(SHAPES) + len(COLOUR_NAMES) + _pair(shape, colour)] = 1
    return look


def picture_rows(scene: Scene) -> Tensor:
    """Shape and colour in each cell, [cells, labels], column by column as `Merge` puts them out."""
    rows = torch.zeros(GRID, GRID, LOOKS)
    for group in scene.groups:
        for row, column in group.cells:
            rows[column, row] = _look(group.shape, group.colour)
    return rows.flatten(0, 1)


def _covered(thing: Thing, frame: int, side: int) -> Tensor:
    """Which parts of a frame a thing covers, [side, side]."""
    place = thing.places[frame]
    if place is None:
        return torch.zeros(side, side, dtype=torch.bool)
    centres = (torch.arange(side) + 0.5) * GRID / side
    down, right = ((centres - (at + 0.5)).abs() < 0.45 for at in place)  # noqa: PLR2004 - shapes do not fill cells
    return down[:, None] & right[None, :]


def frame_rows(clip: Clip, frame: int, side: int, *, by_column: bool) -> Tensor:
    """Shape and colour in each part of a frame, [side * side, labels]."""
    rows = torch.zeros(side, side, LOOKS)
    for thing in clip.things:
        rows[_covered(thing, frame, side)] = _look(thing.shape, thing.colour)
    return (rows.transpose(0, 1) if by_column else rows).reshape(side * side, LOOKS)


def all_frames_rows(clip: Clip, side: int) -> Tensor:
    """Of all frames, in the order of `projectors.all_frames`."""
    frames = len(clip.things[0].places)
    return torch.cat([frame_rows(clip, frame, side, by_column=False) for frame in range(frames)])


def all_resolution_rows(clip: Clip, side: int, sample_frames: int, *, by_column: bool) -> Tensor:
    """In the order of `projectors.all_resolution`; a frame's mean row should tell of everything in it.

    Of whole frames only the second is labelled, or their many rows would outweigh the means.
    """
    frames = len(clip.things[0].places)
    every = torch.stack([frame_rows(clip, frame, side, by_column=by_column) for frame in range(frames)])
    chosen = torch.linspace(0, frames - 1, sample_frames).round().long()
    whole = torch.full_like(every[chosen], UNKNOWN)
    whole[1] = every[chosen[1]]
    return torch.cat([whole.flatten(0, 1), every.amax(dim=1)])


def movement_deep(clip: Clip, side: int) -> Tensor:
    """Of every row its frame, and of the last frame's things what they have done, [frames * side², labels]."""
    frames = len(clip.things[0].places)
    labels = torch.full((frames, side, side, frames + len(DOINGS)), UNKNOWN)
    labels[..., :frames] = torch.eye(frames)[:, None, None]
    for thing in clip.things:
        doing = torch.zeros(len(DOINGS))
        doing[DOINGS.index(thing.doing)] = 1
        labels[-1, ..., frames:][_covered(thing, frames - 1, side)] = doing
    return labels.flatten(0, 2)


def colours(rows: Tensor) -> Tensor:
    """The colours alone of rows' labels."""
    return rows[:, len(SHAPES) : len(SHAPES) + len(COLOUR_NAMES)]


def event_deep(clip: Clip, rows: int, *, colours_alone: bool = False) -> Tensor:
    """Of every mean row its frame, what appears in it and what has just vanished, [rows, labels].

    Args:
        clip: The video.
        rows: All rows; the mean rows are the last.
        colours_alone: Whether things are told apart by their colour, else by shape and colour.
    """
    frames = len(clip.things[0].places)
    kinds = len(COLOUR_NAMES) if colours_alone else PAIRS
    labels = torch.full((rows, frames + 2 * kinds), UNKNOWN)
    means = torch.cat([torch.eye(frames), torch.zeros(frames, 2 * kinds)], dim=1)
    for thing in clip.things:
        kind = COLOUR_NAMES.index(thing.colour) if colours_alone else _pair(thing.shape, thing.colour)
        means[thing.first, frames + kind] = 1
        if thing.last + 1 < frames:
            means[thing.last + 1, frames + kinds + kind] = 1
    labels[-frames:] = means
    return labels
