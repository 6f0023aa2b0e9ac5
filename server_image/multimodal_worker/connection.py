"""The worker's end of the socket."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import msgpack

from multimodal_api.worker_protocol import Codec

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from multimodal_api.worker_protocol import Frame, Message


class Connection:
    """Frames over a stream socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._codec = Codec(msgpack.packb, msgpack.unpackb)

    @classmethod
    async def open(cls, sock: socket.socket) -> Connection:
        """Take a connected socket."""
        return cls(*await asyncio.open_unix_connection(sock=sock))

    async def send(self, message: Message, buffers: Sequence[memoryview] = ()) -> None:
        """Send one frame, and wait while the other end is far behind; `receive` tells when there is no other end."""
        self._writer.writelines(self._codec.encode(message, buffers))
        with suppress(ConnectionError):
            await self._writer.drain()

    async def receive(self) -> Frame | None:
        """Wait for the next frame; None at the end of the stream.

        Raises:
            ProtocolError: the stream is out of step.
        """
        frame = self._codec.receive()
        wanted = next(frame)
        while True:
            try:
                part = await self._reader.readexactly(wanted)
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
            try:
                wanted = frame.send(bytearray(part))
            except StopIteration as whole:
                received: Frame = whole.value
                return received

    async def close(self) -> None:
        """Send what is left and close."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
