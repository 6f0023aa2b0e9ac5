"""The front end of speech encoders: from samples to normalised log-mel frames, as in NeMo's training.

NeMo computes in float32; this computes in float64 and rounds at the end, so that it is the more exact of the two.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_recipes.recipe import EdgePadding
from multimodal_recipes.waves import MAX_SAMPLES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multimodal_recipes.recipe import MelFrontEnd

STD_GUARD: Final = 1e-5
"""Added to each band's deviation; NeMo's constant."""

BLOCK: Final = 1024
"""Frames that are transformed at a time: memory stays small however long the sound is."""

# Slaney's scale: 200/3 Hz to a mel up to 1,000 Hz, above it 27 steps of equal ratio to 6,400 Hz.
_LINEAR: Final = 200 / 3
_KNEE: Final = 1000.0
_STEP: Final = np.log(6.4) / 27

_PADDING: Final[dict[EdgePadding, Any]] = {EdgePadding.REFLECT: "reflect", EdgePadding.ZERO: "constant"}
"""numpy's names."""


def check_samples(samples: NDArray[np.float32], how: MelFrontEnd, *, at: str) -> None:
    """Refuse a sound that has no frames, or too many.

    Raises:
        ProductError: it is no row of finite numbers, too short or too long.
    """
    if samples.ndim != 1 or not how.shortest <= len(samples) <= MAX_SAMPLES:
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at=at,
            problem=f"a sound of shape {list(samples.shape)}",
            remedy=f"give one channel of {how.shortest} to {MAX_SAMPLES} samples at {how.sample_rate} Hz",
        )
    if not np.isfinite(samples).all():
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at=at,
            problem="some samples are not finite numbers",
            remedy="give samples between -1 and 1",
        )


def preprocess(samples: NDArray[np.float32], how: MelFrontEnd, *, at: str) -> NDArray[np.float32]:
    """Make an encoder's frames of a sound.

    Args:
        samples: [samples] at `how.sample_rate`, one channel, full scale -1 to 1.
        how: The encoder's front end.
        at: What to call the sound in an error.

    Returns:
        [frames, bands], `how.frames(samples)` of them.

    Raises:
        ProductError: the sound is refused by `check_samples`.
    """
    check_samples(samples, how, at=at)
    wide = samples.astype(np.float64)
    wide[1:] -= how.preemphasis * wide[:-1]
    logs = np.log(_energies(wide, how) + how.log_guard)
    deviation = logs.std(axis=0, ddof=1) + STD_GUARD
    return np.asarray((logs - logs.mean(axis=0)) / deviation, dtype=np.float32)


def _energies(samples: NDArray[np.float64], how: MelFrontEnd) -> NDArray[np.float64]:
    """Give the power in each band, [frames, bands]; frame k is centred on sample k · hop."""
    padded = np.pad(samples, how.fft // 2, mode=_PADDING[how.padding])
    frames = np.lib.stride_tricks.sliding_window_view(padded, how.fft)[:: how.hop]
    window, bank = _window(how), mel_bank(how).T
    energies = np.empty((len(frames), how.bands))
    for start in range(0, len(frames), BLOCK):
        spectra = np.fft.rfft(frames[start : start + BLOCK] * window)
        energies[start : start + BLOCK] = (spectra.real**2 + spectra.imag**2) @ bank
    return energies


def _window(how: MelFrontEnd) -> NDArray[np.float64]:
    """Give the window in the middle of the transform, [fft]."""
    left = (how.fft - how.window) // 2
    return np.pad(np.hanning(how.window), (left, how.fft - how.window - left))


@lru_cache(maxsize=4)
def mel_bank(how: MelFrontEnd) -> NDArray[np.float64]:
    """Give the weight of each frequency in each band, [bands, fft / 2 + 1]: triangles of area 1 Hz."""
    edges = _hertz(np.linspace(_mel(how.low), _mel(how.high), how.bands + 2))
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    frequencies = np.arange(how.fft // 2 + 1) * how.sample_rate / how.fft
    rising = (frequencies - low) / (middle - low)
    falling = (high - frequencies) / (high - middle)
    return np.asarray(np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low))


def _mel(hertz: float) -> float:
    if hertz < _KNEE:
        return hertz / _LINEAR
    return float(_KNEE / _LINEAR + np.log(hertz / _KNEE) / _STEP)


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _KNEE * np.exp(_STEP * (mels - _KNEE / _LINEAR))
    return np.where(mels < _KNEE / _LINEAR, mels * _LINEAR, above)
