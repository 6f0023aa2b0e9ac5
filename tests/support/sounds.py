"""SALM's speech front end, and sounds to try it with."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from multimodal_recipes.recipe import AudioRecipe, EdgePadding, MelFrontEnd, PromptTemplate

RATE: Final = 16_000

FRONT_END: Final = MelFrontEnd(
    sample_rate=RATE,
    window=400,
    hop=160,
    fft=512,
    bands=80,
    low=0,
    high=RATE / 2,
    preemphasis=0.97,
    log_guard=2**-24,
    padding=EdgePadding.REFLECT,
)
SALM: Final = AudioRecipe(mel=FRONT_END, frames_per_row=64)
TEMPLATE: Final = PromptTemplate(
    before="",
    turn="{text}\nA:",
    lead=" ",
    between="[EOG]",
    medium="{media}Q: ",
    default_text="what's the transcription of the audio?",
)


def noise(samples: int) -> NDArray[np.float32]:
    return np.random.default_rng(samples).standard_normal(samples).astype(np.float32) * np.float32(0.2)


def chirp(seconds: float = 1.3) -> NDArray[np.float32]:
    """From 100 Hz to 7.5 kHz, over a little noise: every band sounds at some time."""
    moments = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * (100 * moments + 0.5 * 7_400 / seconds * moments**2)
    return (0.5 * np.sin(phase)).astype(np.float32) + noise(len(moments)) * np.float32(0.01)
