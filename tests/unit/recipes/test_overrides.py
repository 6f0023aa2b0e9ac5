"""What a deployment changes of a recipe, and what it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from multimodal_api.errors import ProductError
from multimodal_api.overrides import Overrides, PictureResize
from multimodal_api.reasons import Reason
from multimodal_recipes.frames import choose_frames
from multimodal_recipes.images import preprocess
from multimodal_recipes.overrides import overridden
from multimodal_recipes.prompt import Turn, render
from multimodal_recipes.recipe import FrameResize, FrameSampling, Recipe, VideoLayout, VideoRecipe
from support.sounds import SALM, TEMPLATE
from support.tiny_engine import RECIPE

HEARING = Recipe.model_validate(
    RECIPE.model_dump() | {"family": "salm", "vision": None, "audio": SALM, "template": TEMPLATE}
)
VIDEO = VideoRecipe(num_frames=8, sampling=FrameSampling.ROUNDED, layout=VideoLayout.FRAMES)
SEEING = RECIPE.seeing()
SQUASHING = SEEING.preprocessing.model_copy(update={"resize": FrameResize.SQUASH, "shortest_edge": 20})
WIDE = RECIPE.model_copy(update={"vision": SEEING.model_copy(update={"preprocessing": SQUASHING})})
WATCHING = RECIPE.model_copy(update={"vision": SEEING.model_copy(update={"video": VIDEO})})


def changed(recipe: Recipe = RECIPE, **sections: Any) -> Recipe:
    return overridden(recipe, Overrides.model_validate(sections))


def test_nothing_is_changed_unasked() -> None:
    assert overridden(RECIPE, Overrides()) == RECIPE


def test_a_prompt_is_made_with_the_given_pieces_and_the_others_of_training() -> None:
    recipe = changed(prompt={"template": {"before": "Be brief.\n", "turn": "U: {text}\nA:"}, "stopStrings": ["\nU:"]})
    assert render(recipe.template, (Turn(("{text}?",)),)) == ("Be brief.\nU: {text}?\nA:",)
    assert recipe.template.between == RECIPE.template.between
    assert recipe.stop_strings == ("\nU:",)
    assert changed(prompt={"stopStrings": []}).stop_strings == ()


@pytest.mark.parametrize("resize", PictureResize)
def test_a_picture_is_made_square_as_asked(resize: PictureResize) -> None:
    recipe = changed(preprocessing={"resize": resize.value})
    how = recipe.seeing().preprocessing
    assert how.resize is FrameResize(resize.value)
    assert how.model_copy(update={"resize": RECIPE.seeing().preprocessing.resize}) == RECIPE.seeing().preprocessing
    frames = np.zeros((1, 30, 60, 3), np.uint8)
    assert preprocess(frames, how, at="x").shape == (1, 3, how.image_size, how.image_size)


def test_a_video_is_seen_in_so_many_frames() -> None:
    video = changed(WATCHING, preprocessing={"numFrames": 3}).seeing().video
    assert video is not None
    assert len(choose_frames(video, 12)) == 3


@pytest.mark.parametrize(
    ("recipe", "sections", "at", "words"),
    [
        (HEARING, {"preprocessing": {"resize": "pad"}}, "spec.preprocessing.resize", "takes no pictures; remove"),
        (HEARING, {"preprocessing": {"numFrames": 3}}, "spec.preprocessing.numFrames", "takes no videos; remove"),
        (RECIPE, {"preprocessing": {"numFrames": 3}}, "spec.preprocessing.numFrames", "takes no videos; remove"),
        (WIDE, {"preprocessing": {"resize": "pad"}}, "spec.preprocessing", "a crop of 28 pixels does not fit"),
        (
            RECIPE,
            {"prompt": {"template": {"turn": "x"}}},
            "spec.prompt.template.turn",
            r"hold \{text\} exactly once",
        ),
        (
            RECIPE,
            {"prompt": {"template": {"medium": ""}}},
            "spec.prompt.template.medium",
            r"hold \{media\} exactly",
        ),
    ],
)
def test_what_the_model_does_not_take_is_refused(recipe: Recipe, sections: dict[str, Any], at: str, words: str) -> None:
    with pytest.raises(ProductError, match=words) as refused:
        changed(recipe, **sections)
    assert (refused.value.failure.reason, refused.value.failure.at) == (Reason.INVALID, at)
