"""What is asked of an engine, whichever port it came through, and what the worker is given for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multimodal_api.errors import ProductError
from multimodal_api.overrides import MEDIA_SLOT
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Generate, MediaInput, MediaSpan, Sampling
from multimodal_recipes.audio import preprocess as log_mels
from multimodal_recipes.frames import choose_frames
from multimodal_recipes.images import preprocess
from multimodal_recipes.layout import lay_out, lay_out_sound
from multimodal_recipes.prompt import Turn, render
from multimodal_recipes.time_tokens import encode_times
from multimodal_recipes.videos import Video
from multimodal_recipes.waves import Wave, to_mono

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from multimodal_api.engine import Limits
    from multimodal_recipes.prompt import Medium, Prompt
    from multimodal_recipes.recipe import AudioRecipe, PromptTemplate, TimeTokens, VisionRecipe
    from multimodal_server.engine import ServedEngine

Frames = NDArray[np.uint8]
"""A picture, or all frames of a video: [frames, height, width, 3], RGB; a picture is one frame."""
Shown = Frames | Video | Wave
"""A medium: a picture, a video or a sound; of a `Video` the frames have been chosen."""

MAX_SECONDS: Final = 120
"""Of a sound: each frame of it is compared with every other, so that memory grows with its length squared. A
FastConformer of width 512 takes 540 MiB for so long a one, for each of those that it encodes together."""


class Names(NamedTuple):
    """What a port calls things, for refusals."""

    text: str
    media: str
    length: str


@dataclass(frozen=True, slots=True)
class Said:
    """One turn of a conversation."""

    content: tuple[str | Shown, ...]
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
    """What the encoder takes of each medium."""
    max_new_tokens: int
    seconds: float | None
    """Length of the video that time tokens of the answer are about; None where it is unknown."""

    def request(self, request_id: int, sampling: Sampling, stop_token_ids: frozenset[int], *, stream: bool) -> Generate:
        """Ask for one answer; `stream` says whether its tokens are wanted as they come."""
        return Generate(
            request_id=request_id,
            token_ids=self.prompt.ids,
            media=self.media,
            sampling=sampling,
            max_new_tokens=self.max_new_tokens,
            stop_token_ids=stop_token_ids,
            top_logprobs=self.question.top_logprobs,
            stream=stream,
        )


def prepare(question: Question, engine: ServedEngine) -> Prepared:
    """Render, tokenise and check a question, then make of its media what the encoder takes.

    Raises:
        ProductError: the engine has no room for it; nothing has been resized or resampled then.
    """
    recipe = engine.recipe
    said = question.turns
    if recipe.audio is not None:
        said = tuple(_sound_first(each, recipe.template, question.names.media) for each in said)
    said, seconds = _in_tokens(said, recipe.time_tokens)
    shown = [part for each in said for part in each.content if not isinstance(part, str)]
    laid = [_lay_out(part, engine, question.names.media) for part in shown]
    turns = tuple(_turns(said, (each.medium for each in laid)))
    prompt = engine.tokenizer.encode(render(recipe.template, turns))
    room = recipe.max_positions - len(prompt.ids)
    length = question.max_output_len or max(1, min(engine.limits.max_output_len, room))
    check_prompt(
        prompt, max_output_len=length, limits=engine.limits, max_positions=recipe.max_positions, names=question.names
    )
    spans = iter(prompt.media)
    media, buffers = [], []
    for each in laid:
        features = each.make()
        own = [next(spans) for _ in each.medium.slots]
        places = tuple(MediaSpan(start=span.start, length=span.length) for span in own)
        media.append(MediaInput(shape=features.shape, spans=places))
        buffers.append(features.data)
    return Prepared(question, prompt, tuple(media), tuple(buffers), length, seconds)


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


def _in_tokens(turns: tuple[Said, ...], times: TimeTokens | None) -> tuple[tuple[Said, ...], float | None]:
    """Write moments as time tokens, as in training: those of the video that was shown last, while its length is known.

    Returns:
        The turns, and the length of the last video.
    """
    seconds = None
    written = []
    for said in turns:
        seconds = next((part.seconds for part in reversed(said.content) if isinstance(part, Video)), seconds)
        written.append(said if times is None or seconds is None else _written(said, times, seconds))
    return tuple(written), seconds


def _written(said: Said, times: TimeTokens, seconds: float) -> Said:
    return Said(
        tuple(encode_times(times, part, duration=seconds) if isinstance(part, str) else part for part in said.content),
        None if said.answer is None else encode_times(times, said.answer, duration=seconds),
    )


def _sound_first(said: Said, template: PromptTemplate, at: str) -> Said:
    """Order a turn as in training: a sound, then the words between it and the question, then the question.

    A later turn about the same sound has those words too.
    """
    sounds = [part for part in said.content if not isinstance(part, str)]
    if len(sounds) > 1:
        raise refuse(at, f"holds {len(sounds)} sounds in one turn", "send one, or join them in one recording")
    words = [part for part in said.content if isinstance(part, str)]
    if not sounds:
        words.insert(0, template.medium.partition(MEDIA_SLOT)[2])
    return replace(said, content=(*sounds, *words))


class _Laid(NamedTuple):
    """A medium that has its places in the prompt."""

    medium: Medium
    make: Callable[[], NDArray[np.float32]]
    """Computes what the encoder takes."""


def _lay_out(shown: Shown, engine: ServedEngine, at: str) -> _Laid:
    recipe = engine.recipe
    if isinstance(shown, Wave):
        if recipe.audio is None:
            raise refuse(at, "holds a sound, and this model takes pictures", "send pictures, or ask a model of salm")
        return _lay_out_wave(shown, recipe.audio, engine.limits, at)
    if recipe.vision is None:
        raise refuse(at, "holds a picture, and this model takes sounds", "send a sound, or ask a model that sees")
    return _lay_out_frames(shown, recipe.vision, at)


def _lay_out_frames(shown: Frames | Video, vision: VisionRecipe, at: str) -> _Laid:
    if isinstance(shown, Video):
        chosen = shown.frames
    else:
        chosen = shown if vision.video is None else shown[list(choose_frames(vision.video, len(shown)))]
    return _Laid(lay_out(vision, len(chosen)), partial(preprocess, chosen, vision.preprocessing, at=at))


def _lay_out_wave(wave: Wave, audio: AudioRecipe, limits: Limits, at: str) -> _Laid:
    mel = audio.mel
    rate = mel.sample_rate
    samples = wave.samples_at(rate)
    room = limits.max_multimodal_len * audio.frames_per_row * mel.hop - 1
    most = min(room, MAX_SECONDS * rate)
    if samples > most:
        raised = f", or raise spec.limits.maxMultimodalLen ({limits.max_multimodal_len})" if most == room else ""
        # Rounded down: what the message names is taken.
        raise refuse(at, f"lasts {samples / rate:.2f} seconds", f"send at most {most * 10 // rate / 10}{raised}")
    return _Laid(lay_out_sound(audio, samples), lambda: log_mels(to_mono(wave, rate), mel, at=at)[None])


def _turns(turns: tuple[Said, ...], media: Iterator[Medium]) -> Iterator[Turn]:
    for said in turns:
        yield Turn(tuple(part if isinstance(part, str) else next(media) for part in said.content), said.answer)
