"""The question that a server asks itself before it is ready. A build makes sure that there is room for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_recipes.frames import choose_frames
from multimodal_recipes.layout import lay_out, lay_out_sound
from multimodal_recipes.prompt import Turn, render
from multimodal_recipes.waves import Wave

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multimodal_recipes.prompt import Medium, Prompt
    from multimodal_recipes.recipe import AudioRecipe, Recipe
    from multimodal_recipes.tokenizer import Tokenizer

ANSWER_TOKENS: Final = 2
"""One comes from the prompt, one from the KV cache: both code paths have run."""
_FRAMES: Final = 1
_SECONDS: Final = 0.5
_HERTZ: Final = 440


def show(recipe: Recipe) -> NDArray[np.uint8] | Wave:
    """Make what the question is about: a grey picture, [1, edge, edge, 3], or a short tone."""
    if recipe.audio is not None:
        rate = recipe.audio.mel.sample_rate
        moments = np.arange(_samples(recipe.audio), dtype=np.float32) / rate
        return Wave(np.sin(math.tau * _HERTZ * moments)[:, None], rate)
    edge = recipe.seeing().preprocessing.image_size
    return np.full((_FRAMES, edge, edge, 3), 127, np.uint8)


def first_prompt(recipe: Recipe, tokenizer: Tokenizer) -> Prompt:
    """Make the question's prompt, as the server makes it of `show` and the template's default text."""
    turn = Turn((_medium(recipe), recipe.template.default_text))
    return tokenizer.encode(render(recipe.template, (turn,)))


def _medium(recipe: Recipe) -> Medium:
    if recipe.audio is not None:
        return lay_out_sound(recipe.audio, _samples(recipe.audio))
    vision = recipe.seeing()
    return lay_out(vision, _FRAMES if vision.video is None else len(choose_frames(vision.video, _FRAMES)))


def _samples(audio: AudioRecipe) -> int:
    return int(_SECONDS * audio.mel.sample_rate)
