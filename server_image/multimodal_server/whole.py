"""Whole answers, for Triton: the thread that hears the worker puts them together and sends them.

To wake the one that asked for it first took 0.4 ms of a request (two CPUs, tiny NeVA).
"""

from __future__ import annotations

import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from multimodal_api.worker_protocol import Done
from multimodal_server.worker_client import TOKEN_SECONDS, checked, silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_api.errors import Failure
    from multimodal_server.answers import Responder
    from multimodal_server.questions import Prepared
    from multimodal_server.replies import Reply
    from multimodal_server.worker_client import Event


class Caller(Protocol):
    """Whoever asked."""

    def give(self, texts: list[str]) -> None:
        """Take the answer: one text for each copy that was asked for."""

    def when_gone(self, tell: Callable[[], None]) -> None:
        """Have `tell` called, once and from any thread, when nobody waits for the answer any more."""


class Nobody:
    """A caller that only waits."""

    def give(self, texts: list[str]) -> None:
        """Leave it."""

    def when_gone(self, tell: Callable[[], None]) -> None:
        """Never go away."""


class _Gone:
    """Nobody waits any more."""


class _Complete(NamedTuple):
    """An answer that is there."""

    reply: Reply
    done: bool
    """Whether the worker is done with it, too."""


class Whole:
    """All answers to one question, given together when the last of them is complete."""

    def __init__(self, responder: Responder, prepared: Prepared, caller: Caller) -> None:
        """Take the question; `ask` asks it.

        Args:
            responder: answers.
            prepared: the question.
            caller: is given the answer once, from another thread; raises nothing, and does not take long.
        """
        self._worker = responder.worker
        self._prepared = prepared
        self._caller = caller
        self._texts: dict[Reply, list[str]] = {reply: [] for reply in responder.replies(prepared, stream=False)}
        self._heard: queue.SimpleQueue[_Complete | _Gone | Exception | None] = queue.SimpleQueue()
        """Of each event what it completes, if anything, or what is wrong with it."""
        self._lock = threading.Lock()
        self._over = False
        """Whether whoever asked has gone on: nothing may be given any more."""

    def ask(self) -> None:
        """Ask, and wait until the answers have been given, or nobody waits for them any more.

        Raises:
            ProductError: the worker refuses or fails, or says nothing for too long; nothing has been given then.
        """
        running: set[Reply] = set()
        # Whoever asked keeps this: it must not lead to what it asked, a circle that would hold the pictures.
        self._caller.when_gone(partial(self._heard.put, _Gone()))
        try:
            for reply in self._texts:
                running.add(reply)
                self._worker.begin(reply.request, self._prepared.buffers, partial(self._hear, reply))
            while running:
                heard = self._next()
                if isinstance(heard, _Gone):
                    break
                if heard is not None:
                    running.remove(heard.reply)
                    self._end(heard.reply, cancel=not heard.done)
        finally:
            with self._lock:
                self._over = True
            for reply in running:
                self._end(reply, cancel=True)

    def _next(self) -> _Complete | _Gone | None:
        try:
            heard = self._heard.get(timeout=TOKEN_SECONDS)
        except queue.Empty:
            with self._lock:
                self._over = True
            if self._heard.empty():  # else it has come in this moment, and perhaps been given
                raise silent(TOKEN_SECONDS) from None
            heard = self._heard.get()
        if isinstance(heard, Exception):
            try:
                raise heard
            finally:
                del heard  # the error leads to this frame: a circle that would hold the pictures
        return heard

    def _end(self, reply: Reply, *, cancel: bool) -> None:
        self._worker.end(reply.request.request_id, cancel=cancel)
        reply.close()

    def _hear(self, reply: Reply, event: Event | Failure) -> None:
        """Take what the worker says of an answer, in the thread that reads it."""
        try:
            with self._lock:
                if self._over or reply.finish is not None:  # a text has ended it
                    return
                self._texts[reply].append(reply.feed(checked(event)).text)
                if all(each.finish is not None for each in self._texts):
                    self._caller.give(self._in_copies())
                self._heard.put(None if reply.finish is None else _Complete(reply, isinstance(event, Done)))
        except Exception as error:  # noqa: BLE001 -- that of whoever asked
            self._heard.put(error)

    def _in_copies(self) -> list[str]:
        texts = ["".join(parts) for parts in self._texts.values()]
        return texts * self._prepared.question.copies if len(texts) == 1 else texts
