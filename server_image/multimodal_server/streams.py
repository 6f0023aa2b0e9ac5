"""Answers as they come, inside an event loop: for the OpenAI port and for Triton's streaming model."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from multimodal_api.worker_protocol import Done
from multimodal_server.worker_client import TOKEN_SECONDS, checked, silent

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from multimodal_api.errors import Failure
    from multimodal_server.answers import Responder
    from multimodal_server.questions import Prepared
    from multimodal_server.replies import Piece, Reply
    from multimodal_server.worker_client import Event


class Answers:
    """All answers to one question, which have begun."""

    def __init__(self, responder: Responder, prepare: Callable[[], Prepared], *, stream: bool) -> None:
        """Take the question; `begin` asks it."""
        self._responder = responder
        self._prepare = prepare
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[Reply, Event | Failure]] = asyncio.Queue()
        self._running: dict[Reply, int] = {}
        """With the number of each."""
        self.prepared: Prepared
        self.replies: list[Reply]

    def begin(self) -> None:
        """Ask; not for the loop's thread, since pictures are decoded, and the worker may be slow to take the pixels."""
        self.prepared = self._prepare()
        self.replies = self._responder.replies(self.prepared, stream=self._stream)
        for number, reply in enumerate(self.replies):
            self._running[reply] = number
            self._responder.worker.begin(reply.request, self.prepared.buffers, partial(self._hear, reply))

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """Give what comes.

        Yields:
            The number of an answer, and what is new of it.

        Raises:
            ProductError: the worker refuses or fails, or says nothing for too long.
        """
        while self._running:
            try:
                # Not asyncio.wait_for: Python 3.11's loses a cancellation that comes together with an event.
                async with asyncio.timeout(TOKEN_SECONDS):
                    reply, event = await self._events.get()
            except TimeoutError:
                raise silent(TOKEN_SECONDS) from None
            if (number := self._running.get(reply)) is None:  # a text has ended it
                continue
            piece = reply.feed(checked(event))
            if reply.finish is not None:
                self._end(reply, cancel=not isinstance(event, Done))
            yield number, piece

    def end(self) -> None:
        """Cancel what has not ended."""
        for reply in list(self._running):
            self._end(reply, cancel=True)

    def _end(self, reply: Reply, *, cancel: bool) -> None:
        del self._running[reply]
        self._responder.worker.end(reply.request.request_id, cancel=cancel)
        reply.close()

    def _hear(self, reply: Reply, event: Event | Failure) -> None:
        with suppress(RuntimeError):  # the loop is closed, with the Triton whose requests it had: nobody waits there
            self._loop.call_soon_threadsafe(self._events.put_nowait, (reply, event))


@asynccontextmanager
async def asking(
    responder: Responder, prepare: Callable[[], Prepared], *, stream: bool = True
) -> AsyncIterator[Answers]:
    """Ask a question; what has not been answered at the end of the context is cancelled.

    Args:
        responder: answers.
        prepare: makes the question ready, in a thread.
        stream: whether answers are wanted as they come.

    Raises:
        ProductError: the question is refused, or the worker has ended.
    """
    answers = Answers(responder, prepare, stream=stream)
    begun = asyncio.get_running_loop().run_in_executor(None, answers.begin)
    try:
        await asyncio.shield(begun)
        yield answers
    finally:
        while not begun.done():  # the client went away meanwhile
            with suppress(asyncio.CancelledError):  # it is told of again, as when the port stops
                await asyncio.wait([begun])
        begun.exception()  # perhaps nobody else asks for it any more
        answers.end()
        del begun  # its error leads here: a circle that would hold the pictures until the collector comes
