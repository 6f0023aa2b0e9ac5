"""The worker's end of the socket, against bytes written and read without it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import msgpack
import pytest

from multimodal_api.worker_protocol import AskStats, Cancel, Codec, Done, FinishReason, ProtocolError, Timing
from multimodal_worker.connection import Connection

CODEC = Codec(msgpack.packb, msgpack.unpackb)
LARGE = bytes(range(251)) * 2**14
"""Four megabytes: many times what a socket holds."""


def packed(message: AskStats | Cancel, *buffers: bytes) -> bytes:
    return b"".join(bytes(piece) for piece in CODEC.encode(message, [memoryview(buffer) for buffer in buffers]))


@pytest.fixture
async def ends() -> AsyncIterator[tuple[socket.socket, Connection]]:
    ours, theirs = socket.socketpair()
    with ours:
        connection = await Connection.open(theirs)
        yield ours, connection
        ours.close()
        await connection.close()


async def test_frames_of_any_size_in_their_order(ends: tuple[socket.socket, Connection]) -> None:
    ours, connection = ends
    small, large = packed(Cancel(request_id=1), b"", b"ab", b"c"), packed(Cancel(request_id=2), LARGE, b"d")
    sending = asyncio.create_task(asyncio.to_thread(ours.sendall, small + packed(AskStats()) + large))
    first = await connection.receive()
    assert first is not None
    assert first[0] == Cancel(request_id=1)
    assert [bytes(buffer) for buffer in first[1]] == [b"", b"ab", b"c"]
    assert await connection.receive() == (AskStats(), ())
    last = await connection.receive()
    assert last is not None
    assert last[0] == Cancel(request_id=2)
    assert [bytes(buffer) for buffer in last[1]] == [LARGE, b"d"]
    await sending


async def test_a_frame_that_comes_in_pieces(ends: tuple[socket.socket, Connection]) -> None:
    ours, connection = ends
    for byte in packed(Cancel(request_id=7), b"xyz"):
        ours.sendall(bytes([byte]))
        await asyncio.sleep(0)
    assert await connection.receive() == (Cancel(request_id=7), (bytearray(b"xyz"),))


async def test_the_end_of_the_stream(ends: tuple[socket.socket, Connection]) -> None:
    ours, connection = ends
    ours.sendall(packed(AskStats())[:-1])
    ours.close()
    assert await connection.receive() is None


async def test_what_is_no_frame(ends: tuple[socket.socket, Connection]) -> None:
    ours, connection = ends
    ours.sendall(b"\xff" * 64)
    with pytest.raises(ProtocolError):
        await connection.receive()


async def test_who_sends_waits_for_who_reads(ends: tuple[socket.socket, Connection]) -> None:
    ours, connection = ends
    done = Done(request_id=3, reason=FinishReason.STOP, timing=Timing(queue=0, encode=0, generate=0))
    sending = asyncio.create_task(connection.send(done, [memoryview(LARGE)]))
    await asyncio.sleep(0.05)
    assert not sending.done()
    reading = asyncio.create_task(asyncio.to_thread(read_all, ours))
    await sending
    await connection.close()
    assert (await reading).endswith(LARGE)


def read_all(ours: socket.socket) -> bytes:
    parts = []
    while part := ours.recv(2**16):
        parts.append(part)
    return b"".join(parts)
