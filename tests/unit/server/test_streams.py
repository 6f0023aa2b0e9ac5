from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from multimodal_api.worker_protocol import Done, FinishReason, Timing
from multimodal_server.answers import Responder
from multimodal_server.replies import Reply
from multimodal_server.streams import Answers, asking

SECONDS = 10
TIMING = Timing(queue=0, encode=0, generate=0)


class Slow:
    """A responder, its worker and the one answer, in which a question begins when it may."""

    def __init__(self) -> None:
        self.worker = self
        self.request = SimpleNamespace(request_id=7)
        self.begins, self.may_begin = threading.Event(), threading.Event()
        self.said: list[str] = []

    def replies(self, *_args: object, **_kwargs: object) -> list[Slow]:
        return [self]

    def begin(self, *_args: object) -> None:
        self.begins.set()
        assert self.may_begin.wait(SECONDS)
        self.said.append("begun")

    def end(self, request_id: int, *, cancel: bool) -> None:
        self.said.append(f"end {request_id}, cancel {cancel}")

    def close(self) -> None:
        self.said.append("closed")


@pytest.fixture
def slow() -> Iterator[Slow]:
    responder = Slow()
    yield responder
    responder.may_begin.set()


async def ask(responder: Slow) -> None:
    prepared: Any = SimpleNamespace(question=None, buffers=())
    async with asking(cast("Responder", responder), lambda: prepared):
        pytest.fail("nobody is there any more")


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_client_that_goes_away_early_ends_its_question_however_often_it_is_told(slow: Slow, times: int) -> None:
    task = asyncio.create_task(ask(slow))
    assert await asyncio.to_thread(slow.begins.wait, SECONDS)
    for _ in range(times):
        task.cancel()
        for _ in range(3):  # it has heard of it then
            await asyncio.sleep(0)
    slow.may_begin.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, SECONDS)
    assert slow.said == ["begun", "end 7, cancel True", "closed"]


def test_what_is_said_to_a_loop_that_is_closed_harms_nobody() -> None:
    async def listen() -> Answers:
        return Answers(cast("Responder", None), cast("Any", None), stream=True)

    answers = asyncio.run(listen())  # its loop is closed, as one of Triton's when Triton is started again
    answers._hear(cast("Reply", None), Done(request_id=1, reason=FinishReason.CANCELLED, timing=TIMING))
