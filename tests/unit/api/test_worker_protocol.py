from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from multimodal_api.base import Model
from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import (
    MAX_BUFFERS,
    MAX_HEADER_BYTES,
    AskStats,
    Cancel,
    Codec,
    Done,
    Failed,
    FinishReason,
    Frame,
    Generate,
    MediaInput,
    MediaSpan,
    Message,
    ProtocolError,
    Ready,
    Refused,
    Sampling,
    Shutdown,
    Stats,
    Timing,
    Tokens,
    TokenScore,
)

M = TypeVar("M", bound=Model)


def made(model: type[M], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[M]:
    """As `st.builds`, which would guess further values for the aliases."""
    return st.fixed_dictionaries(fields).map(lambda values: model(**values))


CODEC = Codec(msgpack.packb, msgpack.unpackb)
IDS = st.integers(0, 2**63 - 1)
TOKENS = st.integers(0, 2**31 - 1)
SECONDS = st.floats(0, 1e6)
FAILURES = made(Failure, reason=st.sampled_from(Reason), at=st.text(), problem=st.text(), remedy=st.text())
MEDIA = made(
    MediaInput,
    shape=st.tuples(*[st.integers(1, 4096)] * 4),
    spans=st.lists(made(MediaSpan, start=st.integers(0, 9999), length=st.integers(1, 999)), min_size=1).map(tuple),
)
SAMPLINGS = made(
    Sampling,
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 2**31),
    top_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
    frequency_penalty=st.floats(-2, 2),
    presence_penalty=st.floats(-2, 2),
    seed=IDS,
)
SCORES = made(
    TokenScore,
    logprob=st.floats(-100, 0),
    top=st.lists(st.tuples(TOKENS, st.floats(-100, 0)), max_size=3).map(tuple),
)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    made(
        Generate,
        request_id=IDS,
        token_ids=st.lists(TOKENS, min_size=1).map(tuple),
        media=st.lists(MEDIA, max_size=3).map(tuple),
        sampling=SAMPLINGS,
        max_new_tokens=st.integers(1, 10_000),
        stop_token_ids=st.frozensets(TOKENS),
        min_new_tokens=st.integers(0, 10_000),
        top_logprobs=st.none() | st.integers(0, 20),
    ),
    made(Cancel, request_id=IDS),
    st.just(AskStats()),
    st.just(Shutdown()),
    made(Ready, device=st.text(), seconds=st.dictionaries(st.text(), SECONDS)),
    made(Failed, failure=FAILURES),
    made(
        Tokens,
        request_id=IDS,
        token_ids=st.lists(TOKENS, min_size=1).map(tuple),
        scores=st.lists(SCORES, max_size=2).map(tuple),
    ),
    made(
        Done,
        request_id=IDS,
        reason=st.sampled_from(FinishReason),
        timing=made(Timing, queue=SECONDS, encode=SECONDS, generate=SECONDS),
    ),
    made(Refused, request_id=IDS, failure=FAILURES),
    made(
        Stats,
        running=IDS,
        waiting=IDS,
        kv_positions=IDS,
        kv_positions_used=IDS,
        media_cache_hits=IDS,
        media_cache_misses=IDS,
        media_cache_bytes=IDS,
    ),
)


def read(stream: bytes) -> tuple[Frame, bytes]:
    """Read one frame of a stream, and give it with what follows."""
    frame = CODEC.receive()
    wanted = next(frame)
    while True:
        part, stream = stream[:wanted], stream[wanted:]
        assert len(part) == wanted, "the codec asked for more than the frame holds"
        try:
            wanted = frame.send(bytearray(part))
        except StopIteration as whole:
            return whole.value, stream


def bytes_of(message: Message, buffers: Sequence[bytes] = ()) -> bytes:
    return b"".join(bytes(piece) for piece in CODEC.encode(message, [memoryview(buffer) for buffer in buffers]))


@given(st.lists(st.tuples(MESSAGES, st.lists(st.binary(max_size=64), max_size=3)), min_size=1, max_size=3))
def test_what_is_sent_is_received(frames: list[tuple[Message, list[bytes]]]) -> None:
    stream = b"".join(bytes_of(message, buffers) for message, buffers in frames)
    for message, buffers in frames:
        (received, got), stream = read(stream)
        assert received == message
        assert [bytes(buffer) for buffer in got] == buffers
    assert stream == b""


@given(st.binary(min_size=8, max_size=200))
def test_noise_is_never_a_message_nor_another_error(noise: bytes) -> None:
    stream = noise
    frame = CODEC.receive()
    wanted = next(frame)
    try:
        for _ in range(3):
            if wanted > len(stream):
                return  # it waits for more
            part, stream = stream[:wanted], stream[wanted:]
            wanted = frame.send(bytearray(part))
    except ProtocolError:
        return
    except StopIteration:
        pytest.fail("noise became a message")


@pytest.mark.parametrize(
    ("header", "buffers"), [(MAX_HEADER_BYTES + 1, 0), (1, MAX_BUFFERS + 1)], ids=["header", "buffers"]
)
def test_sizes_beyond_all_limits_are_refused_before_memory_is_taken(header: int, buffers: int) -> None:
    frame = CODEC.receive()
    next(frame)
    with pytest.raises(ProtocolError):
        frame.send(bytearray(header.to_bytes(4, "little") + buffers.to_bytes(4, "little")))


def test_a_buffer_beyond_all_limits_is_refused() -> None:
    frame = CODEC.receive()
    next(frame)
    frame.send(bytearray((1).to_bytes(4, "little") * 2))
    with pytest.raises(ProtocolError, match="buffers"):
        frame.send(bytearray((2**62).to_bytes(8, "little")))


@pytest.mark.parametrize(
    "header",
    [
        b"\xc1",
        msgpack.packb({"type": "unknown"}),
        msgpack.packb([]),
        msgpack.packb({"type": "cancel", "request_id": -1}),
    ],
    ids=["no msgpack", "unknown type", "no map", "wrong value"],
)
def test_a_header_that_is_no_message(header: bytes) -> None:
    frame = CODEC.receive()
    next(frame)
    frame.send(bytearray(len(header).to_bytes(4, "little") + bytes(4)))
    with pytest.raises(ProtocolError):
        frame.send(bytearray(header))


@pytest.mark.parametrize(
    ("sampling", "greedy"),
    [
        ({}, True),
        ({"top_k": 1, "top_p": 0.9}, True),
        ({"top_k": 5}, False),
        ({"top_k": 0}, True),
        ({"top_k": 0, "top_p": 0.9}, False),
        ({"top_k": 5, "temperature": 0}, True),
    ],
)
def test_greedy(sampling: dict[str, float], greedy: bool) -> None:  # noqa: FBT001 -- a column of the table
    assert Sampling(**sampling).greedy is greedy


@pytest.mark.parametrize("field", ["temperature", "top_p", "repetition_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_numbers_that_are_none(field: str, value: float) -> None:
    with pytest.raises(ValidationError):
        Sampling(**{field: value})
