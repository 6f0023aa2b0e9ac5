from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_recipes.layout import lay_out, lay_out_sound
from multimodal_recipes.prompt import MediaSlot
from multimodal_recipes.recipe import FrameSampling, Recipe, VideoLayout, VideoRecipe
from support.sounds import SALM
from support.tiny_engine import RECIPE, TOKENS_PER_IMAGE

ROWS = 9
"""A grid of 3 by 3: pooled 2 by 2, one cell is left."""


def video(layout: VideoLayout, **changes: Any) -> VideoRecipe:
    return VideoRecipe(num_frames=8, sampling=FrameSampling.ROUNDED, layout=layout, **changes)


def test_a_picture_is_one_slot() -> None:
    assert lay_out(RECIPE.seeing()).parts == (MediaSlot(TOKENS_PER_IMAGE),)


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        (video(VideoLayout.FRAMES), (MediaSlot(5 * ROWS),)),
        (video(VideoLayout.TEMPORAL_SPATIAL), (MediaSlot(5 + ROWS),)),
        (video(VideoLayout.TEMPORAL_SPATIAL_POOL), (MediaSlot(5 + 4 * 1),)),
        (
            video(
                VideoLayout.TEMPORAL_ALL_RESOLUTION,
                sample_frames=2,
                frame_start="<f>",
                frame_end="</f>",
                video_start="<v>",
                video_end="</v>",
            ),
            ("<f>", MediaSlot(ROWS), "</f>", "<f>", MediaSlot(ROWS), "</f>", "<v>", MediaSlot(5), "</v>"),
        ),
    ],
    ids=lambda value: value.layout if isinstance(value, VideoRecipe) else "",
)
def test_a_video_of_five_frames(recipe: VideoRecipe, parts: tuple[object, ...]) -> None:
    vision = RECIPE.seeing().model_copy(update={"tokens_per_image": ROWS, "video": recipe})
    assert lay_out(vision, 5).parts == parts


def test_a_recipe_has_one_modality() -> None:
    fields = RECIPE.model_dump()
    with pytest.raises(ValidationError, match="exactly one"):
        Recipe.model_validate(fields | {"vision": None})
    with pytest.raises(ValidationError, match="exactly one"):
        Recipe.model_validate(fields | {"audio": SALM})
    hearing = RECIPE.model_copy(update={"family": Family.SALM, "vision": None, "audio": SALM})
    with pytest.raises(ProductError, match="salm takes audio"):
        hearing.seeing()
    with pytest.raises(ProductError, match="neva takes pictures"):
        RECIPE.hearing()


def test_a_sound_takes_the_rows_that_its_encoder_gives() -> None:
    assert lay_out_sound(SALM, 5 * 16_000).parts == (MediaSlot(8),)  # 501 frames
