"""A client of unary gRPC calls that is no library: of HTTP/2 it knows what one call after another takes (RFC 9113)."""

from __future__ import annotations

import socket
import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = struct.Struct(">BHBBI")
"""Of a frame: its payload's size, kind, flags, stream."""
DATA: Final = 0
HEADERS: Final = 1
SETTINGS: Final = 4
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
ACK: Final = 1
END_STREAM: Final = 1
END_HEADERS: Final = 4
FRAME_BYTES: Final = 2**14
"""Of every frame, so long as nobody asks for more."""
WINDOW_BYTES: Final = 2**16 - 1
"""That may be sent at first, of a stream and of the connection."""
SETTINGS_INITIAL_WINDOW_SIZE: Final = 4
READ_BYTES: Final = 2**16


class Unary:
    """One connection, for one call at a time."""

    def __init__(self, port: int, path: str) -> None:
        """Connect.

        Args:
            port: of this machine.
            path: of the method.
        """
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(PREFACE + _frame(SETTINGS, 0, 0, b""))
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "127.0.0.1",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        self._head = b"".join(_field(name, value) for name, value in fields.items())
        self._stream = -1
        self._windows = {0: WINDOW_BYTES}
        """What may be sent, of the connection and of each stream."""
        self._first_window = WINDOW_BYTES
        self._read = bytearray()

    def call(self, message: bytes) -> bytes:
        """Send a message and give the answer, both as they are on the wire.

        Raises:
            RuntimeError: there is none.
        """
        self._stream += 2
        self._windows[self._stream] = self._first_window
        rest = memoryview(struct.pack(">BI", 0, len(message)) + message)
        parts = [_frame(HEADERS, END_HEADERS, self._stream, self._head)]
        while rest:
            if (size := min(FRAME_BYTES, len(rest), self._windows[0], self._windows[self._stream])) <= 0:
                self._flush(parts)
                self._next()
                continue
            parts += _head(DATA, END_STREAM * (size == len(rest)), self._stream, size), rest[:size]
            rest = rest[size:]
            self._windows[0] -= size
            self._windows[self._stream] -= size
        self._flush(parts)
        return self._answer()

    def _flush(self, parts: list[bytes | memoryview]) -> None:
        if parts:
            self._socket.sendall(b"".join(parts))
            parts.clear()

    def _answer(self) -> bytes:
        answer = b""
        while True:
            kind, flags, payload = self._next()
            if kind == DATA:
                answer += payload
                self._socket.sendall(_frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", len(payload))))
            if kind in {DATA, HEADERS} and flags & END_STREAM:
                if not answer:
                    raise RuntimeError(f"no answer, but the trailers {payload!r}")
                del self._windows[self._stream]
                return answer[5:]

    def _next(self) -> tuple[int, int, bytes]:
        """Read a frame, and do what it asks for."""
        kind, flags, stream, payload = self._frame()
        if kind == SETTINGS and not flags & ACK:
            for number, value in struct.iter_unpack(">HI", payload):
                if number == SETTINGS_INITIAL_WINDOW_SIZE:
                    for each in self._windows.keys() - {0}:
                        self._windows[each] += value - self._first_window
                    self._first_window = value
            self._socket.sendall(_frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._socket.sendall(_frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream in self._windows:
            self._windows[stream] += int.from_bytes(payload)
        elif kind == GOAWAY:
            raise RuntimeError(f"the connection ends: {payload!r}")
        return kind, flags, payload

    def _frame(self) -> tuple[int, int, int, bytes]:
        high, low, kind, flags, stream = HEAD.unpack(self._take(HEAD.size))
        return kind, flags, stream, self._take((high << 16) + low)

    def _take(self, size: int) -> bytes:
        while len(self._read) < size:
            part = self._socket.recv(READ_BYTES)
            if not part:
                raise RuntimeError("the connection was closed")
            self._read += part
        taken = bytes(self._read[:size])
        del self._read[:size]
        return taken


def _head(kind: int, flags: int, stream: int, size: int) -> bytes:
    return HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _head(kind, flags, stream, len(payload)) + payload


def _field(name: str, value: str) -> bytes:
    """Write a header field as a literal that no table keeps (RFC 7541, 6.2.2)."""
    return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))
