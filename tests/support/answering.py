"""Answers, for tests that wait for them in their own thread."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from multimodal_api.worker_protocol import Done
from multimodal_server.worker_client import checked, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from multimodal_api.errors import Failure
    from multimodal_api.worker_protocol import Generate, Tokens
    from multimodal_server.answers import Responder
    from multimodal_server.questions import Prepared
    from multimodal_server.replies import Piece
    from multimodal_server.worker_client import Event, WorkerClient

SECONDS = 60.0


@dataclass
class Caller:
    """Whoever asked: keeps what is given."""

    given: list[list[str]] = field(default_factory=list)
    tell: Callable[[], None] = lambda: None
    """What is called when it goes away."""

    def give(self, texts: list[str]) -> None:
        self.given.append(texts)

    def when_gone(self, tell: Callable[[], None]) -> None:
        self.tell = tell


def answer(responder: Responder, tensors: Mapping[str, Any]) -> list[str]:
    """Give the texts that a request of the wire is answered with."""
    caller = Caller()
    responder.answer(tensors, caller)
    (texts,) = caller.given
    return texts


def events(
    worker: WorkerClient, request: Generate, buffers: Sequence[memoryview] = (), *, seconds: float = SECONDS
) -> Generator[Tokens | Done, None, None]:
    """Give what the worker says, up to `Done`; closing the iterator before cancels the request."""
    heard: queue.SimpleQueue[Event | Failure] = queue.SimpleQueue()
    ended = False
    worker.begin(request, buffers, heard.put)
    try:
        while not ended:
            try:
                event = checked(heard.get(timeout=seconds))
            except queue.Empty:
                raise silent(seconds) from None
            ended = isinstance(event, Done)
            yield event
    finally:
        worker.end(request.request_id, cancel=not ended)


def pieces(responder: Responder, prepared: Prepared) -> Iterator[Piece]:
    """Give the one answer to a question as it comes."""
    (reply,) = responder.replies(prepared, stream=True)
    for event in events(responder.worker, reply.request, prepared.buffers):
        yield reply.feed(event)
    reply.close()
