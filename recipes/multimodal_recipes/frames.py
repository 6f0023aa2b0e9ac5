"""Which frames of a video a model sees."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_recipes.recipe import FrameSampling

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_recipes.recipe import VideoRecipe


def choose_frames(video: VideoRecipe, total: int) -> tuple[int, ...]:
    """Choose frames.

    Args:
        video: The model's.
        total: Frames of the video, at least 1.

    Returns:
        Their places in the video, in order; some more than once where the video is shorter than the model wants.
    """
    return _SAMPLINGS[video.sampling](total, video.num_frames or total)


def frame_bounds(video: VideoRecipe) -> tuple[int, int | None]:
    """Give the least and the greatest number of frames that `choose_frames` gives; None is no bound."""
    if video.num_frames is None:
        return 1, None
    least = video.num_frames if video.sampling is FrameSampling.TRUNCATED else 1
    return least, video.num_frames


def spread(total: int, count: int) -> tuple[int, ...]:
    """Spread `count` places evenly from 0 to `total - 1`, rounded as numpy does; some repeat where `total` is less."""
    return tuple(np.round(np.linspace(0, total - 1, count)).astype(int).tolist())


def thin(total: int, most: int) -> tuple[int, ...]:
    """Take every frame, or, of more than `most`, every n-th or so: as many as the least n gives that is enough."""
    return spread(total, total if total <= most else round(total / math.ceil(total / most)))


def _truncated(total: int, wanted: int) -> tuple[int, ...]:
    places = np.linspace(0, total - 1, min(total, wanted), dtype=int).tolist()
    return (*places, *[places[-1]] * (wanted - len(places)))


def _rounded(total: int, most: int) -> tuple[int, ...]:
    return spread(total, total if total <= most else round(total / math.ceil(total / most)))


_SAMPLINGS: Final[dict[FrameSampling, Callable[[int, int], tuple[int, ...]]]] = {
    FrameSampling.TRUNCATED: _truncated,
    FrameSampling.ROUNDED: thin,
}
