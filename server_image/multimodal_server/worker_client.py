"""The worker, as the front sees it: a child process that is started, asked, watched and ended."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Final

import msgpack

from multimodal_api.errors import Failure, ProductError
from multimodal_api.logs import FIELDS
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import (
    AskStats,
    Cancel,
    Codec,
    Done,
    Failed,
    Generate,
    ProtocolError,
    Ready,
    Refused,
    Shutdown,
    Stats,
    Tokens,
)
from multimodal_server.sockets import send_together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from multimodal_api.worker_protocol import Frame, Message

LOG: Final = logging.getLogger(__name__)

PYTHON_VARIABLE: Final = "MULTIMODAL_WORKER_PYTHON"
"""The interpreter of the environment that holds torch."""
WORKER_ENVIRONMENT: Final = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Unless set otherwise. By default torch's CPU threads wait for each other in busy loops: on a node whose CPUs are
shared (2 CPUs, load 14, tiny NeVA) an answer took 8 times as long and 7 times the CPU time."""
TOKEN_SECONDS: Final = 600.0
"""Longest wait for the next token, queueing included: beyond it the client is told."""
END_SECONDS: Final = 10.0
"""How long a worker that was told to end may take."""

Event = Tokens | Done | Refused
_SIGKILL_NOTE: Final = (
    "the kernel ends a process this way when memory runs out: raise spec.serving.resources.limits.memory; "
    "else see the container's log"
)


class WorkerClient:
    """One worker process and the socket to it. All methods may be called from any thread."""

    def __init__(
        self, process: subprocess.Popen[bytes], sock: socket.socket, tell: Callable[[Ready | Failure], None]
    ) -> None:
        self._process = process
        self._socket = sock
        self._stream = sock.makefile("rb")  # several small frames are one read
        self._tell = tell
        self._codec = Codec(msgpack.packb, msgpack.unpackb)
        self._sending = threading.Lock()
        self._ids = count(1)
        self._answers: dict[int, Callable[[Event | Failure], None]] = {}
        self._stats: queue.SimpleQueue[Stats] = queue.SimpleQueue()
        self._asking_stats = threading.Lock()
        self._state = threading.Lock()
        self._ending = False
        self._death: Failure | None = None
        threading.Thread(target=self._read, name="worker-reader", daemon=True).start()

    @classmethod
    def start(cls, engine: Path, tell: Callable[[Ready | Failure], None]) -> WorkerClient:
        """Start the process; it loads the engine while the caller does other things.

        Args:
            engine: its folder.
            tell: called from another thread: once when the engine is loaded, and once when the worker has ended without
                having been told to.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [
                    os.environ.get(PYTHON_VARIABLE, sys.executable),
                    *("-m", "multimodal_worker.main", "--engine", str(engine), "--socket-fd", str(theirs.fileno())),
                ],
                pass_fds=[theirs.fileno()],
                env=WORKER_ENVIRONMENT | os.environ,
                stdin=subprocess.DEVNULL,
            )
        return cls(process, ours, tell)

    def next_id(self) -> int:
        """Give a number for the next request."""
        return next(self._ids)

    def begin(self, request: Generate, buffers: Sequence[memoryview], tell: Callable[[Event | Failure], None]) -> None:
        """Ask one question; `end` must follow, however it goes.

        Args:
            request: with an id from `next_id`.
            buffers: one per medium.
            tell: is given the worker's events from another thread; `checked` says what they mean.

        Raises:
            ProductError: the worker has ended.
        """
        with self._state:
            if self._death is not None:
                raise _error(self._death)
            self._answers[request.request_id] = tell
        self._send(request, buffers)

    def end(self, request_id: int, *, cancel: bool) -> None:
        """Hear no more of a question.

        Args:
            request_id: its.
            cancel: whether the worker may still be at it.
        """
        with self._state:
            self._answers.pop(request_id, None)
        if cancel:
            self._send(Cancel(request_id=request_id))

    def stats(self, timeout: float) -> Stats | None:
        """Ask what the worker is doing; None when it does not answer in time."""
        if not self._asking_stats.acquire(timeout=timeout):
            return None  # those who asked before have no answer yet
        try:
            while not self._stats.empty():  # an answer that came too late for the last question
                self._stats.get()
            self._send(AskStats())
            return self._stats.get(timeout=timeout)
        except queue.Empty:
            return None
        finally:
            self._asking_stats.release()

    def stop(self) -> None:
        """End the process: ask, then kill."""
        with self._state:
            self._ending = True
        self._send(Shutdown())
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            LOG.warning("the worker did not end in time: killing it")
            self._process.kill()
            self._process.wait(END_SECONDS)
        self._socket.close()

    def _send(self, message: Message, buffers: Sequence[memoryview] = ()) -> None:
        pieces = self._codec.encode(message, buffers)
        with self._sending, suppress(OSError):  # the reader finds out why the socket is gone
            send_together(self._socket, pieces)

    def _read(self) -> None:
        """Hand out what the worker says, until it says no more."""
        said: Failure | None = None
        try:
            while (frame := self._receive()) is not None:
                message, _ = frame
                if isinstance(message, Failed):
                    said = message.failure
                else:
                    self._hand_out(message)
        except Exception:  # a defect, too: with nobody who reads, every request would wait for ever
            LOG.exception("the stream from the worker is broken")
            self._process.kill()
        self._bury(said or self._cause_of_death())

    def _receive(self) -> Frame | None:
        frame = self._codec.receive()
        wanted = next(frame)
        while True:
            part = bytearray(wanted)
            if self._stream.readinto(part) < wanted:
                return None
            try:
                wanted = frame.send(part)
            except StopIteration as whole:
                received: Frame = whole.value
                return received

    def _hand_out(self, message: Message) -> None:
        match message:
            case Tokens() | Done() | Refused():
                with self._state:
                    tell = self._answers.get(message.request_id)
                if tell is not None:  # else nobody wants it any more
                    tell(message)
            case Ready():
                self._tell(message)
            case Stats():
                self._stats.put(message)
            case _:
                raise ProtocolError(f"the worker sent {message.type!r}")

    def _cause_of_death(self) -> Failure:
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait(END_SECONDS)
        how = f"with exit code {code}" if code >= 0 else f"by signal {signal.Signals(-code).name}"
        return Failure(
            reason=Reason.SERVER_FAILED,
            at="worker",
            problem=f"the worker process ended {how}",
            remedy=_SIGKILL_NOTE if code == -signal.SIGKILL else "see the container's log",
        )

    def _bury(self, failure: Failure) -> None:
        with self._state:
            self._death = failure
            answers = list(self._answers.values())
            ending = self._ending
        for tell in answers:
            tell(failure)
        if not ending:
            LOG.error("the worker is gone: %s", failure, extra={FIELDS: {"reason": failure.reason}})
            self._tell(failure)


def checked(event: Event | Failure) -> Tokens | Done:
    """Give what is part of an answer.

    Raises:
        ProductError: the worker refuses, or has ended.
    """
    if isinstance(event, Failure):
        raise _error(event)
    if isinstance(event, Refused):
        raise _error(event.failure)
    return event


def silent(timeout: float) -> ProductError:
    """Make the error of a worker that says nothing for so many seconds."""
    return ProductError(
        Reason.DEADLINE_EXCEEDED,
        at="worker",
        problem=f"no token within {timeout:.0f} seconds",
        remedy="send the request again later; if it happens often, give the pod more CPU or a GPU",
    )


def _error(failure: Failure) -> ProductError:
    return ProductError(failure.reason, at=failure.at, problem=failure.problem, remedy=failure.remedy)
