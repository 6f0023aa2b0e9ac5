"""Our front end against torch's spectrum with transformers' mel bands, on chirps and noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.audio_utils import mel_filter_bank
from transformers.models.parakeet.feature_extraction_parakeet import ParakeetFeatureExtractor

from multimodal_recipes.audio import mel_bank, preprocess
from multimodal_recipes.recipe import EdgePadding, MelFrontEnd
from support.mel import TOLERANCE, training_frames
from support.sounds import FRONT_END, RATE, chirp, noise

pytestmark = pytest.mark.parity

SOUNDS = {"chirp": chirp(), "noise": noise(12_345), "short": noise(700), "whole frames": noise(3_200)}


def changed(**fields: Any) -> MelFrontEnd:
    return FRONT_END.model_copy(update=fields)


def difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max())


@pytest.mark.parametrize("samples", SOUNDS.values(), ids=SOUNDS.keys())
@pytest.mark.parametrize("padding", EdgePadding)
def test_frames_are_those_of_training(samples: NDArray[np.float32], padding: EdgePadding) -> None:
    how = changed(padding=padding)
    mode = {EdgePadding.REFLECT: "reflect", EdgePadding.ZERO: "constant"}[padding]
    assert difference(preprocess(samples, how, at=""), training_frames(samples, mode=mode)) <= TOLERANCE


@pytest.mark.parametrize("samples", SOUNDS.values(), ids=SOUNDS.keys())
def test_silent_edges_are_parakeets(samples: NDArray[np.float32]) -> None:
    """transformers' own extractor, which pads with zeros, and leaves the last frame out of its mean."""
    wave = torch.from_numpy(samples)
    emphasised = torch.cat([wave[:1], wave[1:] - 0.97 * wave[:-1]])[None]
    logs = ParakeetFeatureExtractor()._torch_extract_fbank_features(emphasised)[0].double().numpy()
    theirs = (logs - logs.mean(axis=0)) / (logs.std(axis=0, ddof=1) + 1e-5)
    how = changed(padding=EdgePadding.ZERO)
    assert difference(preprocess(samples, how, at=""), theirs.astype(np.float32)) <= TOLERANCE


@pytest.mark.parametrize(("low", "high", "bands"), [(0, 8_000, 80), (0, 8_000, 128), (60, 7_600, 40)])
def test_bands_are_transformers_slaney_bands(low: int, high: int, bands: int) -> None:
    theirs = mel_filter_bank(257, bands, float(low), float(high), RATE, norm="slaney", mel_scale="slaney").T
    ours = mel_bank(changed(low=low, high=high, bands=bands))
    assert np.abs(ours - theirs).max() <= 1e-7 * theirs.max()
