"""One real answer from an engine as it is written. The only module of the builder that imports torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from multimodal_api.engine import MODEL_DIR
from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Sampling
from multimodal_modeling.generate import generate
from multimodal_modeling.model import MultimodalModel
from multimodal_recipes.audio import preprocess as log_mels
from multimodal_recipes.frames import choose_frames
from multimodal_recipes.images import preprocess
from multimodal_recipes.layout import lay_out, lay_out_sound
from multimodal_recipes.prompt import Turn, render
from multimodal_recipes.recipe import LLM_DIR
from multimodal_recipes.tokenizer import TOKENIZER_NAME, Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from multimodal_api.engine import BuildInputs
    from multimodal_recipes.prompt import Medium
    from multimodal_recipes.recipe import Recipe

MAX_TOKENS: Final = 16
"""Of the answer: enough to go through prefill, cache and decoding."""
_WIDTH, _HEIGHT = 96, 64


def answer_one_question(engine: Path, inputs: BuildInputs) -> str:
    """Load the engine and ask its template's default question about a picture or a sound made here.

    Returns:
        The answer's text.

    Raises:
        ProductError: the engine cannot be loaded, or gives numbers that are none.
    """
    try:
        return _answer(engine / MODEL_DIR, inputs)
    except torch.OutOfMemoryError as error:
        raise ProductError(
            Reason.OUT_OF_GPU_MEMORY,
            at="verify",
            problem=str(error).partition("\n")[0],
            remedy="ask for a GPU with more memory, or lower spec.limits",
        ) from error
    except ProductError as error:
        failure = error.failure
        raise ProductError(
            Reason.VERIFICATION_FAILED, at=failure.at, problem=failure.problem, remedy=failure.remedy
        ) from error


def _answer(model_dir: Path, inputs: BuildInputs) -> str:
    on_gpu = inputs.num_gpus > 0 and torch.cuda.is_available()
    model = MultimodalModel.load(
        model_dir, dtype=getattr(torch, inputs.dtype.value), device=torch.device("cuda" if on_gpu else "cpu")
    )
    recipe = model.recipe
    medium, shown = _show(recipe)
    tokenizer = Tokenizer(model_dir / LLM_DIR / TOKENIZER_NAME, add_bos=recipe.add_bos)
    turn = Turn((medium, recipe.template.default_text))
    prompt = tokenizer.encode(render(recipe.template, (turn,)))
    batches = torch.split(torch.from_numpy(shown), inputs.limits.vision_max_batch_size)
    media = model.media.arrange(torch.cat([model.media.encode(batch) for batch in batches]))
    at = [place for span in prompt.media for place in range(span.start, span.start + span.length)]
    embeddings = model.prompt_embeddings(prompt.ids, at, media)
    tokens = generate(
        model.llm,
        embeddings,
        Sampling(),
        prompt_ids=(),
        vocab_size=recipe.vocab_size,
        eos_token_ids={*recipe.eos_token_ids, *tokenizer.stop_ids(recipe.stop_strings)},
        max_new_tokens=min(MAX_TOKENS, inputs.limits.max_output_len),
    )
    return tokenizer.decode(list(tokens))


def _show(recipe: Recipe) -> tuple[Medium, NDArray[np.float32]]:
    """Make a picture, a video of one frame, or a sound: its layout, and what the encoder takes."""
    if recipe.audio is not None:
        samples = _sound(recipe.audio.mel.sample_rate)
        return lay_out_sound(recipe.audio, len(samples)), log_mels(samples, recipe.audio.mel, at="generated sound")[
            None
        ]
    vision, frames = recipe.seeing(), _picture()
    if vision.video is not None:
        frames = frames[list(choose_frames(vision.video, len(frames)))]
    return lay_out(vision, len(frames)), preprocess(frames, vision.preprocessing, at="generated picture")


def _sound(rate: int) -> NDArray[np.float32]:
    """Make one second of a tone that rises from nothing to a tenth of the rate."""
    moments = np.arange(rate) / rate
    tone: NDArray[np.float32] = np.sin(math.tau * rate / 20 * moments**2).astype(np.float32)
    return tone


def _picture() -> NDArray[np.uint8]:
    """Make one RGB frame, [1, height, width, 3], of waves in three colours: nothing in it is constant."""
    rows, columns = np.mgrid[0:_HEIGHT, 0:_WIDTH]
    waves = [np.sin((rows * a + columns * b) * math.tau / _WIDTH) for a, b in ((1, 2), (3, 1), (2, 5))]
    frame: NDArray[np.uint8] = ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)
    return frame[None]
