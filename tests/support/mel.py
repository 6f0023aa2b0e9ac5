"""The frames of a speech encoder's training, by torch's spectrum and transformers' mel bands."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.audio_utils import mel_filter_bank

from support.sounds import RATE

TOLERANCE: Final = 2e-3
"""Largest difference of a normalised value, whose deviation is 1; this computes in float32."""


def training_frames(samples: NDArray[np.float32], *, mode: str = "reflect") -> Any:
    """[frames, bands]; `mode` says what is beyond the edges."""
    wave = torch.from_numpy(samples)
    wave = torch.cat([wave[:1], wave[1:] - 0.97 * wave[:-1]])
    window = torch.hann_window(400, periodic=False)
    spectrum = torch.stft(
        wave[None],
        512,
        hop_length=160,
        win_length=400,
        window=window,
        center=True,
        pad_mode=mode,
        return_complex=True,
    )[0]
    bank = mel_filter_bank(257, 80, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    logs = torch.log(torch.from_numpy(bank.T).float() @ spectrum.abs() ** 2 + 2**-24).T
    deviation = logs.std(dim=0, unbiased=True) + 1e-5
    return ((logs - logs.mean(dim=0)) / deviation).numpy()
