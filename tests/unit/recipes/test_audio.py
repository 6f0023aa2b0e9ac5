from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_recipes import audio
from multimodal_recipes.audio import preprocess
from multimodal_recipes.recipe import MelFrontEnd
from support.sounds import FRONT_END, SALM, noise


@pytest.mark.parametrize("samples", [257, 319, 320, 321, 16_000, 16_159, 16_160])
def test_the_frames_are_counted_before_they_are_made(samples: int) -> None:
    assert preprocess(noise(samples), FRONT_END, at="sound").shape == (FRONT_END.frames(samples), 80)
    assert FRONT_END.frames(samples) == samples // 160 + 1


@pytest.mark.parametrize(("frames", "rows"), [(64, 1), (65, 2), (100, 2), (200, 4), (512, 8), (1024, 16), (3072, 48)])
def test_rows_of_a_sound(frames: int, rows: int) -> None:
    """NeMo's own counts, which its encoder and adapter gave for these numbers of frames."""
    assert SALM.rows((frames - 1) * 160) == SALM.rows(frames * 160 - 1) == rows


def test_every_band_has_mean_0_and_deviation_1() -> None:
    frames = preprocess(noise(20_000), FRONT_END, at="sound")
    assert np.abs(frames.mean(axis=0)).max() < 1e-6
    assert np.abs(frames.std(axis=0, ddof=1) - 1).max() < 1e-4


def test_silence_is_frames_of_zero() -> None:
    assert not preprocess(np.zeros(1_000, np.float32), FRONT_END, at="sound").any()


def test_long_sounds_are_made_in_pieces_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = preprocess(noise(5_000), FRONT_END, at="sound")
    monkeypatch.setattr(audio, "BLOCK", 7)
    assert np.array_equal(preprocess(noise(5_000), FRONT_END, at="sound"), whole)


def test_the_samples_stay_as_they_are() -> None:
    samples = noise(1_000)
    preprocess(samples, FRONT_END, at="sound")
    assert np.array_equal(samples, noise(1_000))


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (noise(256), "257 to"),
        (noise(0), "257 to"),
        (noise(1_000).reshape(2, 500), "[2, 500]"),
        (np.array([np.nan, *noise(999)], np.float32), "finite"),
        (np.array([np.inf, *noise(999)], np.float32), "finite"),
    ],
    ids=["short", "empty", "stereo", "nan", "inf"],
)
def test_what_has_no_frames_is_refused(samples: NDArray[np.float32], says: str) -> None:
    with pytest.raises(ProductError, match="input_signal") as caught:
        preprocess(samples, FRONT_END, at="input_signal")
    assert caught.value.failure.reason is Reason.REQUEST_REFUSED
    assert says in str(caught.value)


@pytest.mark.parametrize("changes", [{"window": 600}, {"low": 9_000}, {"high": 8_001}, {"hop": 0}])
def test_a_front_end_that_cannot_be_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        MelFrontEnd.model_validate(FRONT_END.model_dump() | changes)
