"""What the front and the worker say to each other over their socket.

A frame is a head (sizes), a header (the message's fields, packed by the codec's callables: msgpack at both ends) and
raw buffers (pixels, or frames of sounds), which are never packed. Nothing here reads or writes: `Codec.encode` gives
the bytes to send, and `Codec.receive` asks its caller for a number of bytes at a time.

The order of things: the worker says `Ready` or `Failed` once; then the front asks `Generate`, and for each the worker
answers `Tokens` any number of times, then `Done` or `Refused`, always exactly one of the two. `Cancel` makes `Done`
come sooner. `AskStats` is answered by `Stats`. `Shutdown`, or the end of the stream, ends the worker.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from multimodal_api.base import Model
from multimodal_api.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

RequestId = Annotated[int, Field(ge=0, lt=2**63)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]

MAX_HEADER_BYTES: Final = 2**26
MAX_BUFFERS: Final = 2**12
MAX_BUFFER_BYTES: Final = 2**33
"""Far above any request within the limits: a size beyond these means that the stream is out of step."""

MAX_PENALTY: Final = 2.0
"""OpenAI's bound of the frequency and the presence penalty, either way."""
MAX_TOP_LOGPROBS: Final = 20
"""OpenAI's bound of `top_logprobs`."""


class Sampling(Model):
    """How tokens are chosen."""

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Divides the logits; 0 is greedy."""
    top_k: Annotated[int, Field(ge=0)] = 1
    """Only the best `top_k` tokens; 0 is no bound, 1 is greedy."""
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Only the best tokens that together have this probability; 0 is no bound. Greedy when `top_k` is 0 too."""
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Above 1 makes tokens of prompt and answer less likely."""
    frequency_penalty: Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)] = 0.0
    """Taken from a token's score for each time that the answer holds it."""
    presence_penalty: Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)] = 0.0
    """Taken from the score of every token that the answer holds."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the random choices; of no effect when greedy."""

    @property
    def greedy(self) -> bool:
        """Whether the answer is the same for every seed."""
        return self.top_k == 1 or self.temperature == 0 or (self.top_k == 0 and self.top_p == 0)


class MediaSpan(Model):
    """Consecutive positions of the prompt that hold rows of one medium."""

    start: Annotated[int, Field(ge=0)]
    length: Annotated[int, Field(ge=1)]


class MediaInput(Model):
    """One medium of a request; its content is the buffer of the same index: float32, C order, native byte order."""

    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=3, max_length=4)]
    """As the encoder takes it: [frames, 3, height, width] of a picture or video; [1, frames, bands] of a sound, with as
    many frames as it truly has."""
    spans: Annotated[tuple[MediaSpan, ...], Field(min_length=1)]
    """Where its rows stand in the prompt, in order."""


class Generate(Model):
    """Answer one prompt."""

    type: Literal["generate"] = "generate"
    request_id: RequestId
    """Chosen by the front, never used twice."""
    token_ids: Annotated[tuple[TokenId, ...], Field(min_length=1)]
    """One per position; what stands at media positions has no meaning."""
    media: tuple[MediaInput, ...] = ()
    sampling: Sampling
    max_new_tokens: Annotated[int, Field(ge=1)]
    stop_token_ids: frozenset[TokenId]
    """Any of these ends the answer, and is not part of it."""
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    """Before so many tokens, none of `stop_token_ids` is chosen."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """How many of the best tokens to score beside each token; None scores nothing."""
    stream: bool = True
    """Whether tokens are wanted as they come; else they come with `Done`, which costs both ends less: a message for
    each of them took more of a CPU's time than all else that the front does."""


class Cancel(Model):
    """The answer is not wanted any more."""

    type: Literal["cancel"] = "cancel"
    request_id: RequestId


class AskStats(Model):
    """Ask for `Stats`."""

    type: Literal["ask-stats"] = "ask-stats"


class Shutdown(Model):
    """End, without finishing anything."""

    type: Literal["shutdown"] = "shutdown"


class Ready(Model):
    """The engine is loaded."""

    type: Literal["ready"] = "ready"
    device: str
    """Where it runs, such as `cpu` or `cuda:0`."""
    seconds: dict[str, float]
    """Time that each part of the start took."""


class Failed(Model):
    """The worker cannot go on; it ends right after this."""

    type: Literal["failed"] = "failed"
    failure: Failure


class TokenScore(Model):
    """What the model itself thinks of a token, before temperature, cuts and penalties: natural logarithms."""

    logprob: float
    top: tuple[tuple[TokenId, float], ...]
    """The best tokens and theirs, best first."""


class Tokens(Model):
    """The next tokens of an answer."""

    type: Literal["tokens"] = "tokens"
    request_id: RequestId
    token_ids: Annotated[tuple[TokenId, ...], Field(min_length=1)]
    seconds: tuple[float, ...] = ()
    """When each was chosen, since the worker took the request."""
    scores: tuple[TokenScore, ...] = ()
    """One for each token where `top_logprobs` was given."""


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    """A stop token was chosen."""
    LENGTH = "length"
    """`max_new_tokens` were given."""
    CANCELLED = "cancelled"


class Timing(Model):
    """Where a request's time went, in seconds."""

    queue: float
    """Waiting for a place among the running requests."""
    encode: float
    """Media encoding, or waiting for it; about 0 when the cache had it."""
    generate: float
    """From the whole prompt to the last token; waiting for key/value memory is a part of it."""


class Done(Model):
    """An answer is complete."""

    type: Literal["done"] = "done"
    request_id: RequestId
    reason: FinishReason
    timing: Timing
    rest: Tokens | None = None
    """The tokens that were not told before: all of them, where they were not wanted as they come."""


class Refused(Model):
    """A request has no answer."""

    type: Literal["refused"] = "refused"
    request_id: RequestId
    failure: Failure


class Stats(Model):
    """What the worker is doing."""

    type: Literal["stats"] = "stats"
    running: int
    """Requests that have a place."""
    waiting: int
    """Requests that wait for one, or for memory."""
    kv_positions: int
    """Positions that fit in the key/value memory; 0 where the backend does not say."""
    kv_positions_used: int
    """Positions of it that requests have taken."""
    media_cache_hits: int
    media_cache_misses: int
    media_cache_bytes: int


Message = Generate | Cancel | AskStats | Shutdown | Ready | Failed | Tokens | Done | Refused | Stats
_MESSAGES: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])

_HEAD: Final = struct.Struct("<II")
"""Bytes of the header, number of buffers."""
_SIZE: Final = struct.Struct("<Q")

Frame = tuple[Message, tuple[bytearray, ...]]
"""A message and its buffers, as received."""


class ProtocolError(Exception):
    """The stream holds something that no peer of this version sends."""


class Codec:
    """Frames from messages and back."""

    def __init__(self, pack: Callable[[Any], bytes], unpack: Callable[[bytearray], Any]) -> None:
        """Take the packing of headers.

        Args:
            pack: plain lists, dictionaries, numbers and strings to bytes.
            unpack: the way back.
        """
        self._pack = pack
        self._unpack = unpack

    def encode(self, message: Message, buffers: Sequence[memoryview] = ()) -> list[bytes | memoryview]:
        """Give the pieces to send, in order; buffers are not copied."""
        header = self._pack(message.model_dump(mode="json"))
        sizes = b"".join(_SIZE.pack(buffer.nbytes) for buffer in buffers)
        return [_HEAD.pack(len(header), len(buffers)) + sizes + header, *(buffer.cast("B") for buffer in buffers)]

    def receive(self) -> Generator[int, bytearray, Frame]:
        """Read one frame: yields how many bytes it wants next, is sent exactly so many, and returns the frame.

        Raises:
            ProtocolError: sizes beyond all limits, or a header that is no message.
        """
        header_size, count = _HEAD.unpack((yield _HEAD.size))
        if header_size > MAX_HEADER_BYTES or count > MAX_BUFFERS:
            raise ProtocolError(f"a header of {header_size} bytes with {count} buffers")
        sizes = [size for (size,) in _SIZE.iter_unpack((yield count * _SIZE.size))] if count else []
        if sum(sizes) > MAX_BUFFER_BYTES:
            raise ProtocolError(f"buffers of {sum(sizes)} bytes")
        packed = yield header_size
        try:
            message = _MESSAGES.validate_python(self._unpack(packed))
        except (ValueError, ValidationError) as error:
            raise ProtocolError(f"a header that is no message: {error}") from error
        buffers = [bytearray() for _ in sizes]
        for index, size in enumerate(sizes):
            if size:
                buffers[index] = yield size
        return message, tuple(buffers)
