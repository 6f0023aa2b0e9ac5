"""How media stand in a prompt: numbers of rows and the texts between them, in prompt order.

`multimodal_modeling` arranges a medium's features in exactly this order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from multimodal_recipes.prompt import MediaSlot, Medium
from multimodal_recipes.recipe import VideoLayout

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_recipes.recipe import AudioRecipe, VideoRecipe, VisionRecipe

POOLED_FRAMES: Final = 4
"""Frames that `temporal-spatial-pool` shows: the square of its pooling edge."""
POOL: Final = 2
"""Edge of the cells that `temporal-spatial-pool` averages."""


def lay_out(vision: VisionRecipe, frames: int = 1) -> Medium:
    """Lay a picture or a video out.

    Args:
        vision: The model's.
        frames: Of the video, after sampling; a picture is one.
    """
    if vision.video is None:
        return Medium((MediaSlot(vision.tokens_per_image),))
    return lay_out_video(vision.video, vision.tokens_per_image, frames)


def lay_out_video(video: VideoRecipe, rows: int, frames: int) -> Medium:
    """Lay a video out.

    Args:
        video: The model's.
        rows: Per frame.
        frames: After sampling.
    """
    return Medium(tuple(part for part in _LAYOUTS[video.layout](video, rows, frames) if part != ""))


def lay_out_sound(audio: AudioRecipe, samples: int) -> Medium:
    """Lay a recording out.

    Args:
        audio: The model's.
        samples: Of the recording, at the model's sample rate.
    """
    return Medium((MediaSlot(audio.rows(samples)),))


_Parts = tuple[str | MediaSlot, ...]


def _frames(_video: VideoRecipe, rows: int, frames: int) -> _Parts:
    return (MediaSlot(frames * rows),)


def _temporal_spatial_pool(_video: VideoRecipe, rows: int, frames: int) -> _Parts:
    return (MediaSlot(frames + POOLED_FRAMES * (math.isqrt(rows) // POOL) ** 2),)


def _temporal_spatial(_video: VideoRecipe, rows: int, frames: int) -> _Parts:
    return (MediaSlot(frames + rows),)


def _temporal_all_resolution(video: VideoRecipe, rows: int, frames: int) -> _Parts:
    whole: _Parts = (video.frame_start, MediaSlot(rows), video.frame_end)
    return (*whole * video.sample_frames, video.video_start, MediaSlot(frames), video.video_end)


_LAYOUTS: Final[dict[VideoLayout, Callable[[VideoRecipe, int, int], _Parts]]] = {
    VideoLayout.FRAMES: _frames,
    VideoLayout.TEMPORAL_SPATIAL_POOL: _temporal_spatial_pool,
    VideoLayout.TEMPORAL_SPATIAL: _temporal_spatial,
    VideoLayout.TEMPORAL_ALL_RESOLUTION: _temporal_all_resolution,
}
