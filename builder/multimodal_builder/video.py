"""From a checkpoint's configuration to the recipe of videos."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from multimodal_api.families import Family
from multimodal_builder.checkpoints.config import CONFIG_NAME, config_error
from multimodal_builder.templates import VIDEO_END, VIDEO_START
from multimodal_recipes.recipe import FrameSampling, VideoLayout, VideoRecipe

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.config import ModelConfig
    from multimodal_builder.templates import Marks
    from multimodal_recipes.recipe import VisionRecipe

ALL_FRAMES: Final = -1
"""`data.num_frames` for a model that sees them all."""
MARKED: Final = "im_vid_start_end"
"""`mm_cfg.lita.visual_token_format` with marks around each frame and around the video."""

LITA_LAYOUTS: Final = {
    ("temporal_spatial_pool", "v1"): VideoLayout.TEMPORAL_SPATIAL_POOL,
    ("temporal_spatial", "v1"): VideoLayout.TEMPORAL_SPATIAL,
    ("temporal_all_resolution", MARKED): VideoLayout.TEMPORAL_ALL_RESOLUTION,
}
"""By `mm_cfg.lita.lita_video_arch` and `visual_token_format`: NeMo's own code fails with any other pair."""


def video_recipe(config: ModelConfig, family: Family, marks: Marks) -> VideoRecipe | None:
    """Decide frames and layout; None for families that take pictures alone.

    Args:
        config: Of the checkpoint; the rules of its family hold.
        family: The model's.
        marks: Pieces at the place of media.
    """
    match family:
        case Family.VIDEO_NEVA:
            frames = config.data.num_frames
            return VideoRecipe(
                num_frames=None if frames == ALL_FRAMES else frames,
                sampling=FrameSampling.TRUNCATED,
                layout=VideoLayout.FRAMES,
            )
        case Family.LITA | Family.VITA:
            return _lita(config, marks)
        case _:
            return None


def _lita(config: ModelConfig, marks: Marks) -> VideoRecipe:
    lita = config.mm_cfg.lita
    layout = LITA_LAYOUTS[lita.lita_video_arch, lita.visual_token_format]
    if layout is not VideoLayout.TEMPORAL_ALL_RESOLUTION:
        # NeMo's video loader, as for video-neva: training always has num_frames rows for the time.
        return VideoRecipe(num_frames=config.data.num_frames, sampling=FrameSampling.TRUNCATED, layout=layout)
    return VideoRecipe(
        num_frames=config.data.num_frames,
        sampling=FrameSampling.ROUNDED,
        layout=layout,
        sample_frames=lita.sample_frames,
        frame_start=marks.start,
        frame_end=marks.end,
        video_start=VIDEO_START,
        video_end=VIDEO_END,
    )


def check_grid(vision: VisionRecipe) -> None:
    """Require a square of rows per frame where a layout averages its cells.

    Raises:
        ProductError: they are none.
    """
    rows = vision.tokens_per_image
    pooled = vision.video is not None and vision.video.layout is VideoLayout.TEMPORAL_SPATIAL_POOL
    if pooled and math.isqrt(rows) ** 2 != rows:
        raise config_error(
            f"{CONFIG_NAME}: mm_cfg.lita.lita_video_arch",
            f"is 'temporal_spatial_pool', but a frame has {rows} rows, which are no square",
            "correct it, or vision_select_feature: NeMo could not have trained this",
        )
