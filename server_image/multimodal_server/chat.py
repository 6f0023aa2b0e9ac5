"""From OpenAI's chat request to a question, and from pieces of answers to its responses."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from multimodal_api.worker_protocol import FinishReason, Sampling
from multimodal_server.openai_schema import Logprobs, TextPart, TokenLogprob, TopLogprob
from multimodal_server.parts import PartReader, addresses
from multimodal_server.questions import Names, Question, Said, refuse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from multimodal_api.engine import Limits
    from multimodal_recipes.recipe import Recipe
    from multimodal_recipes.tokenizer import Tokenizer
    from multimodal_server.openai_schema import ChatRequest, Finish, Message
    from multimodal_server.questions import Shown
    from multimodal_server.replies import Piece

NAMES: Final = Names("messages", "messages", "max_completion_tokens")
TINY_NUCLEUS: Final = 1e-6
"""What a `top_p` of 0 means here: the best token alone. The worker's 0 is no bound."""
_SYSTEM: Final = frozenset({"system", "developer"})


def media_addresses(request: ChatRequest, recipe: Recipe) -> dict[str, str]:
    """List the media that a request names by address: what to call each in an error, by address.

    Raises:
        ProductError: the model does not take such media.
    """
    asked = (
        (_name(number, index), part)
        for number, message in enumerate(request.messages)
        if message.role == "user" and not isinstance(message.content, str)
        for index, part in enumerate(message.content)
    )
    return addresses(asked, recipe)


def read_chat(request: ChatRequest, limits: Limits, recipe: Recipe, fetched: Mapping[str, bytes]) -> Question:
    """Make a question of a request whose fields have been checked one by one.

    Args:
        request: as it came.
        limits: of the engine.
        recipe: of its model.
        fetched: contents of `media_addresses`.

    Raises:
        ProductError: the messages are no conversation, a medium cannot be read or is not what the model takes, or a
            limit of the engine is exceeded.
    """
    length = request.max_completion_tokens or request.max_tokens
    if length is not None and length > limits.max_output_len:
        raise refuse(
            NAMES.length,
            f"is {length} (spec.limits.maxOutputLen is {limits.max_output_len})",
            f"ask for at most {limits.max_output_len}, or leave it out",
        )
    copies = request.n or 1
    if copies > limits.max_batch_size:
        raise refuse(
            "n",
            f"is {copies} (spec.limits.maxBatchSize is {limits.max_batch_size})",
            f"ask for at most {limits.max_batch_size}",
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise refuse("top_logprobs", "is given without logprobs", "set logprobs to true")
    stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return Question(
        turns=tuple(_turns(request.messages, PartReader(limits, recipe, fetched))),
        sampling=_sampling(request),
        max_output_len=length,
        names=NAMES,
        copies=copies,
        stops=stops,
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def finish_reason(reason: FinishReason | None) -> Finish:
    """Say why a whole answer ended."""
    return "length" if reason is FinishReason.LENGTH else "stop"


def logprobs(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Logprobs | None:
    """Describe the tokens of some pieces, where the request asks for it."""
    scored = [pair for piece in pieces for pair in zip(piece.token_ids, piece.scores, strict=False)]
    if not scored:
        return None

    def described(token: int, logprob: float) -> TopLogprob:
        text = tokenizer.token_text(token)
        return TopLogprob(token=text, logprob=logprob, bytes=list(text.encode()))

    return Logprobs(
        content=[
            TokenLogprob(
                **described(token, score.logprob).model_dump(),
                top_logprobs=[described(other, value) for other, value in score.top],
            )
            for token, score in scored
        ]
    )


def _sampling(request: ChatRequest) -> Sampling:
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else max(request.top_p, TINY_NUCLEUS),
        top_k=request.top_k or 0,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        seed=secrets.randbits(63) if request.seed is None else request.seed,
    )


def _turns(messages: list[Message], reader: PartReader) -> Iterator[Said]:
    """Pair what the user said with what was answered.

    The template's own system part was part of the training and stays; a system message stands in front of what the user
    says first.
    """
    asked: tuple[str | Shown, ...] | None = None
    system = ""
    for number, message in enumerate(messages):
        at = f"messages[{number}]"
        if message.role in _SYSTEM:
            if asked is not None or number:
                raise refuse(at, "is a system message behind others", "give one system message, in front")
            system = _text(message, at) + "\n\n"
        elif message.role == "user":
            if asked is not None:
                raise refuse(at, "is the second user message in a row", "join them in one message, as parts")
            asked = (*((system,) if system else ()), *_content(message, reader, number))
            system = ""
        else:
            if asked is None:
                raise refuse(at, "is an answer to nothing", "let user and assistant take turns, the user first")
            yield Said(asked, _text(message, at))
            asked = None
    if asked is None:
        raise refuse(f"messages[{len(messages) - 1}]", "is not the user's", "end with a user message")
    yield Said(asked)


def _text(message: Message, at: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if not all(isinstance(part, TextPart) for part in message.content):
        raise refuse(at, f"is a {message.role} message with media", "give pictures, videos and sounds in user messages")
    return "".join(part.text for part in message.content if isinstance(part, TextPart))


def _name(message: int, part: int) -> str:
    return f"messages[{message}].content[{part}]"


def _content(message: Message, reader: PartReader, number: int) -> tuple[str | Shown, ...]:
    parts = message.content
    content = (
        (parts,)
        if isinstance(parts, str)
        else tuple(reader.read(part, _name(number, index)) for index, part in enumerate(parts))
    )
    if not any(not isinstance(part, str) or part.strip() for part in content):
        raise refuse(f"messages[{number}]", "is empty", "send a question")
    return content
