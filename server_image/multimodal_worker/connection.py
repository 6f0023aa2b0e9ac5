"""The worker's end of the socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgpack

from multimodal_api.worker_protocol import Codec, ProtocolError

if TYPE_CHECKING:
    import socket
    from collections.abc import Generator, Sequence

    from multimodal_api.worker_protocol import Frame, Message


AHEAD_BYTES: Final = 2**16
"""Read at once while less is wanted: a frame's first parts are small."""


class Connection(asyncio.BufferedProtocol):
    """Frames over a stream socket. Most of what comes is read to where it stays: pixels are many."""

    def __init__(self) -> None:
        self._codec = Codec(msgpack.packb, msgpack.unpackb)
        self._received: asyncio.Queue[Frame | ProtocolError | None] = asyncio.Queue()
        self._transport: asyncio.Transport | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._closed = asyncio.Event()
        self._frame: Generator[int, bytearray, Frame] = self._codec.receive()
        self._part = bytearray(next(self._frame))
        self._room = memoryview(self._part)
        self._ahead = memoryview(bytearray(AHEAD_BYTES))
        self._out_of_step = False

    @classmethod
    async def open(cls, sock: socket.socket) -> Connection:
        """Take a connected socket."""
        _, connection = await asyncio.get_running_loop().create_unix_connection(cls, sock=sock)
        return connection

    async def send(self, message: Message, buffers: Sequence[memoryview] = ()) -> None:
        """Send one frame, and wait while the other end is far behind; `receive` tells when there is no other end."""
        if self._transport is not None:
            self._transport.writelines(self._codec.encode(message, buffers))
            await self._may_write.wait()

    async def receive(self) -> Frame | None:
        """Wait for the next frame; None at the end of the stream.

        Raises:
            ProtocolError: the stream is out of step.
        """
        received = await self._received.get()
        if isinstance(received, ProtocolError):
            raise received
        return received

    async def close(self) -> None:
        """Send what is left and close."""
        if self._transport is not None:
            self._transport.close()
            await self._closed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- of a stream socket
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 -- asyncio's
        """Say where to read to."""
        return self._room if len(self._room) >= AHEAD_BYTES else self._ahead

    def buffer_updated(self, nbytes: int) -> None:
        """Go on behind what was read."""
        if len(self._room) >= AHEAD_BYTES:
            self._fill(nbytes)
            return
        read = self._ahead[:nbytes]
        while read and not self._out_of_step:
            size = min(len(read), len(self._room))
            self._room[:size] = read[:size]
            self._fill(size)
            read = read[size:]

    def _fill(self, size: int) -> None:
        """So many bytes more are where they belong."""
        self._room = self._room[size:]
        try:
            while not self._room:
                self._begin_part(self._frame.send(self._part))
        except StopIteration as whole:
            self._received.put_nowait(whole.value)
            self._frame = self._codec.receive()
            self._begin_part(next(self._frame))
        except ProtocolError as error:
            self._received.put_nowait(error)
            self._out_of_step = True
            if self._transport is not None:
                self._transport.abort()

    def eof_received(self) -> None:
        """Close: the other end does not listen either."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's
        """End."""
        self._received.put_nowait(None)
        self._closed.set()
        self._may_write.set()

    def pause_writing(self) -> None:
        """Let those who send wait."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """Let them go on."""
        self._may_write.set()

    def _begin_part(self, size: int) -> None:
        self._part = bytearray(size)
        self._room = memoryview(self._part)
