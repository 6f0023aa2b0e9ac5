"""Runs in Triton's own process, in the model of whole answers: asks the front over a socket and waits.

PyTriton's own way to the front leads through an event loop, two more threads and a message queue at each end, and
shared memory that a third process hands out. Here the thread that Triton calls writes to a socket, and reads the
answer that a thread of the front writes. (One process could hold all requests, since Triton lets a model answer later;
but then it leaves others in its queue for a second now and then, with nothing to do.)

This file lies beside `triton_model.py` there, and imports nothing of this project but `sockets.py`, which lies there,
too; the front imports it for the frames.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from .sockets import send_together  # not by the project's name: Triton's process knows no other file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TEXT: Final = "O"
"""Of numpy's kinds: a tensor of texts."""

_SIZES: Final = struct.Struct("<QQ")
"""Bytes of the head, which is JSON, and of the body behind it."""


def name(instance: str) -> str:
    """Name the socket of an instance of the model, in PyTriton's workspace.

    Without the model's name: a path of a socket has 107 bytes.

    Args:
        instance: Triton's name of it, which ends with its number.
    """
    return f"calls-{instance.rpartition('_')[2]}"


class Frame(NamedTuple):
    """What goes over the socket, either way."""

    head: Any
    body: memoryview


def send(connection: socket.socket, head: object, body: Sequence[memoryview] = ()) -> None:
    """Send a frame.

    Raises:
        OSError: the other end is gone.
    """
    packed = json.dumps(head).encode()
    send_together(connection, (_SIZES.pack(len(packed), sum(part.nbytes for part in body)) + packed, *body))


def receive(connection: socket.socket) -> Frame | None:
    """Wait for a frame; None when the other end is gone."""
    sizes = _read(connection, _SIZES.size)
    if sizes is None:
        return None
    head_size, body_size = _SIZES.unpack(sizes)
    head, body = _read(connection, head_size), _read(connection, body_size)
    return None if head is None or body is None else Frame(json.loads(bytes(head)), body)


def _read(connection: socket.socket, size: int) -> memoryview | None:
    whole = memoryview(bytearray(size))
    rest = whole
    while rest:
        try:
            got = connection.recv_into(rest)
        except OSError:
            got = 0
        if got == 0:
            return None
        rest = rest[got:]
    return whole


def send_tensors(connection: socket.socket, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Send tensors, texts as arrays of `bytes` objects.

    Raises:
        OSError: the other end is gone.
    """
    heads, body = [], []
    for name, tensor in tensors.items():
        if tensor.dtype.kind == TEXT:
            parts = [memoryview(text) for text in tensor.reshape(-1)]
        else:
            parts = [np.ascontiguousarray(tensor).data.cast("B")]
        heads.append([name, tensor.dtype.str, tensor.shape, [part.nbytes for part in parts]])
        body += parts
    send(connection, heads, body)


def tensors_of(frame: Frame) -> dict[str, NDArray[Any]]:
    """Give the tensors of a frame that `send_tensors` sent; numbers are views of it."""
    tensors: dict[str, NDArray[Any]] = {}
    at = 0
    for name, kind, shape, sizes in frame.head:
        parts = []
        for size in sizes:
            parts.append(frame.body[at : at + size])
            at += size
        dtype = np.dtype(kind)
        if dtype.kind == TEXT:
            tensors[name] = np.array([bytes(part) for part in parts], dtype).reshape(shape)
        else:
            tensors[name] = np.frombuffer(parts[0], dtype).reshape(shape)
    return tensors


class Calls:
    """The socket, and what waits for an answer at it."""

    def __init__(self, path: Path) -> None:
        """Listen.

        Args:
            path: where the front connects.
        """
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._front: socket.socket | None = None

    def ask(self, tensors: Mapping[str, NDArray[Any]]) -> Any:  # noqa: ANN401 -- what the front says
        """Ask, and wait for the answer; None when the front is gone."""
        if self._front is None:
            self._front, _ = self._listening.accept()
        try:
            send_tensors(self._front, tensors)
        except OSError:
            return None
        frame = receive(self._front)
        return None if frame is None else frame.head

    def close(self) -> None:
        """Ask no more."""
        self._listening.close()
        if self._front is not None:
            self._front.close()
