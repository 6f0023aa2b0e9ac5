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
from multimodal_recipes.frames import choose_frames
from multimodal_recipes.images import preprocess
from multimodal_recipes.layout import lay_out
from multimodal_recipes.prompt import Turn, render
from multimodal_recipes.recipe import LLM_DIR
from multimodal_recipes.tokenizer import TOKENIZER_NAME, Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from multimodal_api.engine import BuildInputs

MAX_TOKENS: Final = 16
"""Of the answer: enough to go through prefill, cache and decoding."""
_WIDTH, _HEIGHT = 96, 64


def answer_one_question(engine: Path, inputs: BuildInputs) -> str:
    """Load the engine and ask its template's default question about a picture made here.

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
    vision = recipe.seeing()
    tokenizer = Tokenizer(model_dir / LLM_DIR / TOKENIZER_NAME, add_bos=recipe.add_bos)
    frames = _picture()
    if vision.video is not None:
        frames = frames[list(choose_frames(vision.video, len(frames)))]
    turn = Turn((lay_out(vision, len(frames)), recipe.template.default_text))
    prompt = tokenizer.encode(render(recipe.template, (turn,)))
    pixels = preprocess(frames, vision.preprocessing, at="generated picture")
    batches = torch.split(torch.from_numpy(pixels), inputs.limits.vision_max_batch_size)
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


def _picture() -> NDArray[np.uint8]:
    """Make one RGB frame, [1, height, width, 3], of waves in three colours: nothing in it is constant."""
    rows, columns = np.mgrid[0:_HEIGHT, 0:_WIDTH]
    waves = [np.sin((rows * a + columns * b) * math.tau / _WIDTH) for a, b in ((1, 2), (3, 1), (2, 5))]
    frame: NDArray[np.uint8] = ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)
    return frame[None]
