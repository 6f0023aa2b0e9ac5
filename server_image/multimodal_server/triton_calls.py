"""Runs in Triton's own process, in the model of whole answers: asks the front over a socket.

PyTriton's own way to the front leads through an event loop, two more threads and a message queue at each end, and
shared memory that a third process hands out. Here the thread that Triton calls writes to a socket, and another one
hands the answers that come there to Triton. One process holds all requests: where each has one of its own, they take
turns, and whichever comes next has cold caches (0.2 ms of a request with 32 of them, and 45 MiB each).

This file lies beside `triton_model.py` there, and imports nothing of this project but `sockets.py`, which lies there,
too; the front imports it for the frames.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from .sockets import send_together  # not by the project's name: Triton's process knows no other file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TEXT: Final = "O"
"""Of numpy's kinds: a tensor of texts."""

GONE: Final = "gone"
"""Head of a frame by which the front hears that nobody waits for an answer any more."""
SOCKET: Final = "calls"
"""In PyTriton's workspace."""
POLL_SECONDS: Final = 0.25
"""Between two questions to Triton whether a client is still there: each takes a tenth of a millisecond."""

_SIZES: Final = struct.Struct("<QQQ")
"""Number of the request, bytes of the head, which is JSON, and of the body behind it."""


class Frame(NamedTuple):
    """What goes over the socket, either way."""

    number: int
    """Of the request."""
    head: Any
    body: memoryview


def send(connection: socket.socket, number: int, head: object, body: Sequence[memoryview] = ()) -> None:
    """Send a frame.

    Raises:
        OSError: the other end is gone.
    """
    packed = json.dumps(head).encode()
    send_together(connection, (_SIZES.pack(number, len(packed), sum(part.nbytes for part in body)) + packed, *body))


def receive(connection: socket.socket) -> Frame | None:
    """Wait for a frame; None when the other end is gone."""
    sizes = _read(connection, _SIZES.size)
    if sizes is None:
        return None
    number, head_size, body_size = _SIZES.unpack(sizes)
    head, body = _read(connection, head_size), _read(connection, body_size)
    return None if head is None or body is None else Frame(number, json.loads(bytes(head)), body)


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


def send_tensors(connection: socket.socket, number: int, tensors: Mapping[str, NDArray[Any]]) -> None:
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
    send(connection, number, heads, body)


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


class Waiting:
    """A request that waits for its answer."""

    def __init__(self, give: Callable[[Any], None], is_cancelled: Callable[[], bool]) -> None:
        """Wait.

        Args:
            give: is given what the front says, once, or None when it is gone; raises nothing.
            is_cancelled: asks Triton whether the client went away.
        """
        self._give = give
        self._is_cancelled = is_cancelled
        self._lock = threading.Lock()
        self._ended = False

    def end(self, said: Any) -> None:  # noqa: ANN401 -- what the front says
        """Give the answer."""
        with self._lock:
            self._ended = True
            self._give(said)

    def gone(self) -> bool:
        """Say whether nobody waits any more. After the answer Triton must not be asked."""
        with self._lock:
            return not self._ended and self._is_cancelled()


class Calls:
    """The socket, and what waits for an answer at it."""

    def __init__(self, path: Path) -> None:
        """Listen.

        Args:
            path: where the front connects.
        """
        self._numbers = count(1)
        self._waiting: dict[int, Waiting] = {}
        self._gone = False
        """Whether the front is."""
        self._changed = threading.Condition()
        """One of these two."""
        self._sending = threading.Lock()
        self._front: socket.socket | None = None
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()

    def ask(self, tensors: Mapping[str, NDArray[Any]], waiting: Waiting) -> None:
        """Ask, always from the same thread.

        Args:
            tensors: of the request.
            waiting: whoever waits for the answer.
        """
        if self._front is None:
            self._front, _ = self._listening.accept()
            for name, work in (("answers", self._hear), ("watch", self._look)):
                threading.Thread(target=work, args=(self._front,), name=name, daemon=True).start()
        number = next(self._numbers)
        with self._changed:
            gone = self._gone
            if not gone:
                self._waiting[number] = waiting
                self._changed.notify()
        if gone:
            waiting.end(None)
            return
        try:
            with self._sending:
                send_tensors(self._front, number, tensors)
        except OSError:
            _hang_up(self._front)  # whoever hears there tells all

    def close(self) -> None:
        """Ask no more."""
        self._listening.close()
        if self._front is not None:
            _hang_up(self._front)

    def _hear(self, front: socket.socket) -> None:
        """Hand out the answers; whatever ends that, nobody waits any longer."""
        try:
            while (frame := receive(front)) is not None:
                with self._changed:
                    waiting = self._waiting.pop(frame.number, None)
                if waiting is None:  # the front is out of step
                    return
                waiting.end(frame.head)
        finally:
            _hang_up(front)
            with self._changed:
                self._gone = True
                left = list(self._waiting.values())
                self._waiting.clear()
                self._changed.notify()
            for waiting in left:
                waiting.end(None)

    def _look(self, front: socket.socket) -> None:
        """Tell of those who went away, until the front has ended their requests."""
        while not self._gone:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._gone)
            time.sleep(POLL_SECONDS)
            with self._changed:
                asked = list(self._waiting.items())
            for number, waiting in asked:
                if waiting.gone():
                    with suppress(OSError), self._sending:
                        send(front, number, GONE)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # the other end was faster
        connection.shutdown(socket.SHUT_RDWR)
