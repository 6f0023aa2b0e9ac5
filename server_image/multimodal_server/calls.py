"""The front's end of the socket of `triton_calls.py`: so many threads answer what comes there."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from multimodal_api.errors import ProductError
from multimodal_server import triton_calls
from multimodal_server.refusal import words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from multimodal_server.triton_calls import Frame
    from multimodal_server.whole import Caller

    Answer = Callable[[Mapping[str, NDArray[Any]], Caller], None]

SEND_SECONDS: Final = 5
WENT_AWAY: Final = {"code": "CANCELLED", "message": "the client went away"}
"""Nobody reads it, but Triton waits for something."""


class Call:
    """One request, as whoever answers it sees the client."""

    def __init__(self, say: Callable[[Mapping[str, object]], None]) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._tell: Callable[[], None] | None = None
        self._gone = False
        self._answered = False

    def give(self, texts: list[str]) -> None:
        """Answer."""
        self.say({"texts": texts})

    def when_gone(self, tell: Callable[[], None]) -> None:
        """Have `tell` called, once and from any thread, when the client goes away; perhaps it has."""
        with self._lock:
            self._tell = tell
            gone = self._gone
        if gone:
            tell()

    def leave(self) -> None:
        """The client went away; this may be said more than once."""
        with self._lock:
            tell = None if self._gone else self._tell
            self._gone = True
        if tell is not None:
            tell()

    def say(self, said: Mapping[str, object]) -> None:
        """Tell Triton, unless it has been told."""
        if not self._answered:
            self._answered = True
            self._say(said)


class CallServer:
    """Answers requests, until Triton's end is gone."""

    def __init__(self, path: Path, answer: Answer, *, threads: int) -> None:
        """Connect.

        Args:
            path: where `triton_calls.Calls` listens.
            answer: gives the texts of one request, once, or none when the client has gone away, or raises a
                ProductError; nothing else.
            threads: that answer, at most. One reads; when it has a request, it answers that, and another one reads on:
                the one that was busy last, so that few are ever used, and those have warm caches.

        Raises:
            OSError: nobody listens.
        """
        self._answer = answer
        self._calls: dict[int, Call] = {}
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        # The thread that sends hears the worker, for all: Triton's end reads at once, or is as good as gone.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", SEND_SECONDS, 0))
        self._sending = threading.Lock()
        self._state = threading.Lock()
        """Of all that follows."""
        self._may_start = threads
        self._idle: list[threading.Lock] = []
        """Each is held, and whoever releases it lets its thread read; the last one's was busy last."""
        self._is_read = True
        """Whether one reads, or is about to."""
        self._alive = True
        self._start()

    def is_alive(self) -> bool:
        """Say whether it still answers."""
        return self._alive

    def close(self) -> None:
        """Answer no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _start(self) -> None:
        self._may_start -= 1
        threading.Thread(target=self._run, name="answer", daemon=True).start()

    def _run(self) -> None:
        try:
            while self._answer_one():
                self._wait_to_read()
        finally:
            with self._state:
                self._alive = False
                for thread in self._idle:
                    thread.release()
                self._idle.clear()

    def _answer_one(self) -> bool:
        """Read a request, answer it, and keep nothing of it; False at the end."""
        if not self._alive or (frame := self._next()) is None:
            return False
        self._let_another_read()
        call = self._calls[frame.number]
        try:
            self._answer(triton_calls.tensors_of(frame), call)
        except ProductError as error:
            call.say(words(error.failure))
        del self._calls[frame.number]
        call.say(WENT_AWAY)  # if it was not answered
        return True

    def _let_another_read(self) -> None:
        with self._state:
            if self._idle:
                self._idle.pop().release()
            elif self._may_start:
                self._start()
            else:
                self._is_read = False

    def _wait_to_read(self) -> None:
        turn = threading.Lock()
        with self._state:
            if not self._is_read or not self._alive:
                self._is_read = True
                return
            turn.acquire()
            self._idle.append(turn)
        turn.acquire()

    def _next(self) -> Frame | None:
        """Wait for a request; None at the end."""
        while (frame := triton_calls.receive(self._socket)) is not None:
            if frame.head != triton_calls.GONE:
                self._calls[frame.number] = Call(partial(self._say, frame.number))
                return frame
            if (call := self._calls.get(frame.number)) is not None:
                call.leave()
        return None

    def _say(self, number: int, said: Mapping[str, object]) -> None:
        try:
            with self._sending:
                triton_calls.send(self._socket, number, said)
        except OSError:  # perhaps in the middle of a frame
            self.close()
