"""The rows of videos against a reference that is written as loops over frames, rows and cells."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from multimodal_modeling.video import arrange  # noqa: E402
from multimodal_recipes.layout import lay_out_video  # noqa: E402
from multimodal_recipes.recipe import FrameSampling, VideoLayout, VideoRecipe  # noqa: E402

HIDDEN = 5
Rows = list[list[float]]


def mean(rows: Rows) -> list[float]:
    return [sum(row[column] for row in rows) / len(rows) for column in range(HIDDEN)]


def every_so_often(frames: int, count: int) -> list[int]:
    return [round(place) for place in np.linspace(0, frames - 1, count)]


def pooled(frame: Rows) -> Rows:
    edge = math.isqrt(len(frame))
    rows: Rows = []
    for y in range(0, edge - 1, 2):
        for x in range(0, edge - 1, 2):
            rows.append(mean([frame[(y + dy) * edge + x + dx] for dy in (0, 1) for dx in (0, 1)]))
    return rows


def reference(frames: list[Rows], layout: VideoLayout, sample_frames: int) -> Rows:
    rows: Rows = []
    times = [mean(frame) for frame in frames]
    match layout:
        case VideoLayout.FRAMES:
            for frame in frames:
                rows += frame
        case VideoLayout.TEMPORAL_SPATIAL:
            rows += times
            for place in range(len(frames[0])):
                rows.append(mean([frame[place] for frame in frames]))
        case VideoLayout.TEMPORAL_SPATIAL_POOL:
            rows += times
            for number in every_so_often(len(frames), 4):
                rows += pooled(frames[number])
        case VideoLayout.TEMPORAL_ALL_RESOLUTION:
            for number in every_so_often(len(frames), sample_frames):
                rows += frames[number]
            rows += times
    return rows


@pytest.mark.parametrize("tokens", [4, 9, 36])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("layout", list(VideoLayout))
def test_rows_stand_in_the_order_of_training(layout: VideoLayout, frames: int, tokens: int) -> None:
    features = torch.randn(frames, tokens, HIDDEN, generator=torch.Generator().manual_seed(frames * tokens))
    video = VideoRecipe(
        num_frames=16, sampling=FrameSampling.ROUNDED, layout=layout, sample_frames=4, frame_start="<f>"
    )
    rows = arrange(features, video)
    wanted = torch.tensor(reference(features.tolist(), layout, 4))
    assert rows.shape == (lay_out_video(video, tokens, frames).rows, HIDDEN)
    assert torch.allclose(rows, wanted, atol=1e-6, rtol=0)


def test_a_picture_is_as_it_is() -> None:
    features = torch.arange(12.0).reshape(1, 4, 3)
    assert torch.equal(arrange(features, None), features[0])
