"""Answers as they come, inside an event loop: for the OpenAI port and for Triton's streaming model."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

from multimodal_api.errors import ProductError
from multimodal_api.worker_protocol import Done
from multimodal_server.worker_client import TOKEN_SECONDS, checked, silent

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from multimodal_server.questions import Prepared
    from multimodal_server.replies import Piece, Reply
    from multimodal_server.worker_client import WorkerClient


async def merged(
    worker: WorkerClient, prepared: Prepared, replies: Sequence[Reply]
) -> AsyncGenerator[tuple[int, Piece], None]:
    """Give the pieces of several answers to one question as they come; leaving before the end cancels them.

    Args:
        worker: answers.
        prepared: the question.
        replies: the answers, which have not begun.

    Yields:
        The number of an answer, and what is new of it.

    Raises:
        ProductError: the worker refuses or fails.
    """
    found: asyncio.Queue[tuple[int, Piece] | ProductError | None] = asyncio.Queue()

    async def follow(number: int, reply: Reply) -> None:
        try:
            async with aclosing(_pieces(worker, prepared, reply)) as pieces:
                async for piece in pieces:
                    found.put_nowait((number, piece))
            found.put_nowait(None)
        except ProductError as error:
            found.put_nowait(error)

    tasks = [asyncio.create_task(follow(number, reply)) for number, reply in enumerate(replies)]
    try:
        left = len(tasks)
        while left:
            event = await found.get()
            if isinstance(event, ProductError):
                raise event
            if event is None:
                left -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pieces(worker: WorkerClient, prepared: Prepared, reply: Reply) -> AsyncGenerator[Piece, None]:
    """Give one answer as it comes; leaving before its end cancels it."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Any] = asyncio.Queue()
    done = False

    def tell(event: object) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    # In a thread: the worker may be slow to take the pixels.
    begin = asyncio.create_task(asyncio.to_thread(worker.begin, reply.request, prepared.buffers, tell))
    with closing(reply):
        try:
            await asyncio.shield(begin)
            while reply.finish is None:
                try:
                    # Not asyncio.wait_for: Python 3.11's loses a cancellation that comes together with an event.
                    async with asyncio.timeout(TOKEN_SECONDS):
                        event = checked(await events.get())
                except TimeoutError:
                    raise silent(TOKEN_SECONDS) from None
                done = isinstance(event, Done)
                yield reply.feed(event)
        finally:
            await asyncio.wait([begin])
            worker.end(reply.request.request_id, cancel=not done)
