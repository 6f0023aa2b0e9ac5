"""The rows of a video, in the order in which they stand in the prompt; `multimodal_recipes.layout` gives the places."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch.nn.functional import avg_pool2d

from multimodal_recipes.frames import spread
from multimodal_recipes.layout import POOL, POOLED_FRAMES
from multimodal_recipes.recipe import VideoLayout

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from multimodal_recipes.recipe import VideoRecipe


def arrange(features: Tensor, video: VideoRecipe | None) -> Tensor:
    """Make prompt rows of a medium's features.

    Args:
        features: [frames, tokens, hidden], after the projector; a picture is one frame.
        video: The model's; None for families that take pictures alone.

    Returns:
        [rows, hidden]; as many as the slots of `multimodal_recipes.layout.lay_out` for so many frames.
    """
    return features.flatten(0, 1) if video is None else _LAYOUTS[video.layout](features, video)


def _frames(features: Tensor, _video: VideoRecipe) -> Tensor:
    return features.flatten(0, 1)


def _temporal_spatial_pool(features: Tensor, _video: VideoRecipe) -> Tensor:
    edge = math.isqrt(features.shape[1])
    shown = features[list(spread(len(features), POOLED_FRAMES))]
    grids = shown.reshape(POOLED_FRAMES, edge, edge, -1).permute(0, 3, 1, 2)
    pooled = avg_pool2d(grids, POOL).permute(0, 2, 3, 1)
    return torch.cat([features.mean(1), pooled.flatten(0, 2)])


def _temporal_spatial(features: Tensor, _video: VideoRecipe) -> Tensor:
    return torch.cat([features.mean(1), features.mean(0)])


def _temporal_all_resolution(features: Tensor, video: VideoRecipe) -> Tensor:
    whole = features[list(spread(len(features), video.sample_frames))]
    return torch.cat([whole.flatten(0, 1), features.mean(1)])


_LAYOUTS: Final[dict[VideoLayout, Callable[[Tensor, VideoRecipe], Tensor]]] = {
    VideoLayout.FRAMES: _frames,
    VideoLayout.TEMPORAL_SPATIAL_POOL: _temporal_spatial_pool,
    VideoLayout.TEMPORAL_SPATIAL: _temporal_spatial,
    VideoLayout.TEMPORAL_ALL_RESOLUTION: _temporal_all_resolution,
}
