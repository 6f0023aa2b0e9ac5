"""Frames chosen of videos, against lists that NeMo's own formulas gave."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_recipes.frames import choose_frames, frame_bounds, spread
from multimodal_recipes.recipe import FrameSampling, VideoLayout, VideoRecipe


def video(sampling: FrameSampling, num_frames: int | None) -> VideoRecipe:
    return VideoRecipe(num_frames=num_frames, sampling=sampling, layout=VideoLayout.FRAMES)


@pytest.mark.parametrize(
    ("sampling", "total", "num_frames", "places"),
    [
        (FrameSampling.TRUNCATED, 100, 8, (0, 14, 28, 42, 56, 70, 84, 99)),
        (FrameSampling.TRUNCATED, 9, 8, (0, 1, 2, 3, 4, 5, 6, 8)),
        (FrameSampling.TRUNCATED, 8, 8, (0, 1, 2, 3, 4, 5, 6, 7)),
        (FrameSampling.TRUNCATED, 3, 8, (0, 1, 2, 2, 2, 2, 2, 2)),
        (FrameSampling.TRUNCATED, 1, 8, (0,) * 8),
        (FrameSampling.TRUNCATED, 3, None, (0, 1, 2)),
        (FrameSampling.ROUNDED, 100, 8, (0, 14, 28, 42, 57, 71, 85, 99)),
        (FrameSampling.ROUNDED, 17, 8, (0, 3, 6, 10, 13, 16)),
        (FrameSampling.ROUNDED, 9, 8, (0, 3, 5, 8)),
        (FrameSampling.ROUNDED, 8, 8, (0, 1, 2, 3, 4, 5, 6, 7)),
        (FrameSampling.ROUNDED, 3, 8, (0, 1, 2)),
        (FrameSampling.ROUNDED, 1, 8, (0,)),
    ],
)
def test_the_frames_are_those_of_nemo(
    sampling: FrameSampling, total: int, num_frames: int | None, places: tuple[int, ...]
) -> None:
    assert choose_frames(video(sampling, num_frames), total) == places


@given(st.sampled_from(FrameSampling), st.integers(1, 400), st.integers(1, 64) | st.none())
def test_the_number_of_frames_keeps_its_bounds(sampling: FrameSampling, total: int, num_frames: int | None) -> None:
    recipe = video(sampling, num_frames)
    places = choose_frames(recipe, total)
    least, most = frame_bounds(recipe)
    assert least <= len(places) <= (most or total)
    assert list(places) == sorted(places)
    assert places[0] == 0
    assert places[-1] < total


def test_places_repeat_where_there_are_too_few() -> None:
    assert spread(2, 4) == (0, 0, 1, 1)
    assert spread(1, 4) == (0, 0, 0, 0)
    assert spread(6, 3) == (0, 2, 5)
