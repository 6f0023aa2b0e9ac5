"""What is asked of an engine, whichever port it came through, and what the worker is given for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Generate, MediaInput, MediaSpan, Sampling
from multimodal_recipes.frames import choose_frames
from multimodal_recipes.images import preprocess
from multimodal_recipes.layout import lay_out
from multimodal_recipes.prompt import Turn, render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multimodal_api.engine import Limits
    from multimodal_recipes.prompt import Medium, Prompt
    from multimodal_recipes.recipe import VisionRecipe
    from multimodal_server.engine import ServedEngine

Frames = NDArray[np.uint8]
"""A picture or a video: [frames, height, width, 3], RGB; a picture is one frame."""


class Names(NamedTuple):
    """What a port calls things, for refusals."""

    text: str
    media: str
    length: str


@dataclass(frozen=True, slots=True)
class Said:
    """One turn of a conversation."""

    content: tuple[str | Frames, ...]
    """Of the user, in order."""
    answer: str | None = None
    """None in the last turn, and there alone."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request, checked as far as it can be without the tokenizer."""

    turns: tuple[Said, ...]
    sampling: Sampling
    max_output_len: int | None
    """None: as long as engine and model allow."""
    names: Names
    copies: int = 1
    """Answers wanted."""
    stops: tuple[str, ...] = ()
    """Texts that end the answer, beside those of the model."""
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A question as the worker takes it."""

    question: Question
    prompt: Prompt
    media: tuple[MediaInput, ...]
    buffers: tuple[memoryview, ...]
    """Pixels of each medium."""
    max_new_tokens: int

    def request(self, request_id: int, sampling: Sampling, stop_token_ids: frozenset[int]) -> Generate:
        """Ask for one answer."""
        return Generate(
            request_id=request_id,
            token_ids=self.prompt.ids,
            media=self.media,
            sampling=sampling,
            max_new_tokens=self.max_new_tokens,
            stop_token_ids=stop_token_ids,
            top_logprobs=self.question.top_logprobs,
        )


def prepare(question: Question, engine: ServedEngine) -> Prepared:
    """Render, tokenise and check a question, then make pixels of its pictures and videos.

    Raises:
        ProductError: the engine has no room for it; nothing has been resized then.
    """
    recipe, vision = engine.recipe, engine.recipe.seeing()
    seen = [frames for said in question.turns for frames in said.content if not isinstance(frames, str)]
    chosen = [_choose(vision, frames) for frames in seen]
    laid = [lay_out(vision, len(frames)) for frames in chosen]
    turns = tuple(_turns(question.turns, iter(laid)))
    prompt = engine.tokenizer.encode(render(recipe.template, turns))
    room = recipe.max_positions - len(prompt.ids)
    length = question.max_output_len or max(1, min(engine.limits.max_output_len, room))
    check_prompt(
        prompt, max_output_len=length, limits=engine.limits, max_positions=recipe.max_positions, names=question.names
    )
    spans = iter(prompt.media)
    media, buffers = [], []
    for frames, medium in zip(chosen, laid, strict=True):
        pixels = preprocess(frames, vision.preprocessing, at=question.names.media)
        own = [next(spans) for _ in medium.slots]
        places = tuple(MediaSpan(start=span.start, length=span.length) for span in own)
        media.append(MediaInput(shape=pixels.shape, spans=places))
        buffers.append(pixels.data)
    return Prepared(question, prompt, tuple(media), tuple(buffers), length)


def check_prompt(prompt: Prompt, *, max_output_len: int, limits: Limits, max_positions: int, names: Names) -> None:
    """Refuse a prompt that the engine has no room for.

    Args:
        prompt: tokenised, media positions included.
        max_output_len: of the answer, in tokens.
        limits: of the engine.
        max_positions: longest sequence that the language model was made for.
        names: of the fields.

    Raises:
        ProductError: too long.
    """
    length = len(prompt.ids)
    if prompt.media_length > limits.max_multimodal_len:
        raise refuse(
            names.media,
            f"takes {prompt.media_length} positions, and the engine was built for {limits.max_multimodal_len}",
            "raise spec.limits.maxMultimodalLen",
        )
    if length > limits.max_input_len:
        raise refuse(
            names.text,
            f"the prompt has {length} tokens ({prompt.media_length} of them media), and the engine was built for "
            f"{limits.max_input_len}",
            f"shorten the text by {length - limits.max_input_len} tokens, or raise spec.limits.maxInputLen",
        )
    if length + max_output_len > max_positions:
        raise refuse(
            names.length,
            f"{length} tokens of prompt and {max_output_len} of answer exceed the model's {max_positions} positions",
            f"ask for at most {max(0, max_positions - length)} tokens, or shorten the text",
        )


def refuse(at: str, problem: str, remedy: str) -> ProductError:
    """Make the error of a request that is wrong."""
    return ProductError(Reason.REQUEST_REFUSED, at=at, problem=problem, remedy=remedy)


def _choose(vision: VisionRecipe, frames: Frames) -> Frames:
    return frames if vision.video is None else frames[list(choose_frames(vision.video, len(frames)))]


def _turns(turns: tuple[Said, ...], media: Iterator[Medium]) -> Iterator[Turn]:
    for said in turns:
        yield Turn(tuple(part if isinstance(part, str) else next(media) for part in said.content), said.answer)
