from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest
import torch

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import (
    Done,
    FinishReason,
    Generate,
    MediaInput,
    MediaSpan,
    Message,
    Refused,
    Sampling,
    Tokens,
)
from multimodal_modeling.splice import splice
from multimodal_worker.backends.base import BackendStats, Engine, GenerateRequest, Token
from multimodal_worker.device import DeviceThread
from multimodal_worker.encoder import BatchedEncoder, MediaCache
from multimodal_worker.scheduler import MIN_WAITING, Scheduler

HIDDEN = 2


class Model:
    """Encodes a frame to two rows of its first value, embeds an id as itself, answers with the prompt's first row."""

    takes_any_length = False

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.prompts: list[GenerateRequest] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()
        self.full = asyncio.Event()
        """Three are at work."""
        self.error: Exception | None = None

    def arrange(self, features: torch.Tensor) -> torch.Tensor:
        return features.flatten(0, 1)

    def encode_together(self, items: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [item.flatten()[0].expand(2, HIDDEN) for item in items]

    def prompt_embeddings(self, ids: tuple[int, ...], media_at: list[int], media: torch.Tensor) -> torch.Tensor:
        text = torch.tensor(ids, dtype=torch.float32)[:, None].repeat(1, HIDDEN)
        return splice(text, media, torch.tensor(media_at, dtype=torch.long))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Token, None]:
        self.prompts.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.set()
        if self.running == 3:
            self.full.set()
        try:
            for index in range(request.max_new_tokens):
                await self.gate.wait()
                if self.error is not None:
                    raise self.error
                token = int(request.embeddings[0, 0]) + index
                if token in request.stop_token_ids:
                    return
                yield Token(token)
                await asyncio.sleep(0)
        finally:
            self.running -= 1

    def stats(self) -> BackendStats:
        return BackendStats(self.running)

    async def close(self) -> None: ...


class Front:
    """Collects what the worker says."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.said = asyncio.Condition()

    async def send(self, message: Message) -> None:
        async with self.said:
            self.messages.append(message)
            self.said.notify_all()

    def tokens(self, request_id: int) -> list[int]:
        return [
            token
            for message in self.messages
            if isinstance(message, Tokens) and message.request_id == request_id
            for token in message.token_ids
        ]

    async def end(self, request_id: int) -> Done | Refused:
        async with self.said:
            await self.said.wait_for(lambda: bool(self._ends(request_id)))
        (end,) = self._ends(request_id)
        return end

    def _ends(self, request_id: int) -> list[Done | Refused]:
        return [
            message
            for message in self.messages
            if isinstance(message, Done | Refused) and message.request_id == request_id
        ]


def made(model: Model, front: Front, *, max_running: int = 2) -> Scheduler:
    thread = DeviceThread()
    encoder = BatchedEncoder(model, thread, max_batch=4, cache=MediaCache())
    engine = Engine(encoder=model, embedder=model, backend=model, hidden_size=HIDDEN)
    return Scheduler(engine, encoder, thread, max_running=max_running, send=front.send)


def asking(request_id: int, first: int = 100, *, tokens: int = 3, stops: frozenset[int] = frozenset()) -> Generate:
    return Generate(
        request_id=request_id,
        token_ids=(first, 5, 5, 6),
        sampling=Sampling(),
        max_new_tokens=tokens,
        stop_token_ids=stops,
    )


def with_picture(request_id: int, *spans: tuple[int, int], ids: tuple[int, ...] = (9, 0, 0, 8)) -> Generate:
    return Generate(
        request_id=request_id,
        token_ids=ids,
        media=(MediaInput(shape=(1, 3, 2, 2), spans=tuple(MediaSpan(start=a, length=b) for a, b in spans)),),
        sampling=Sampling(),
        max_new_tokens=1,
        stop_token_ids=frozenset(),
    )


def picture(value: float) -> bytearray:
    return bytearray(torch.full((1, 3, 2, 2), value, dtype=torch.float32).numpy().tobytes())


@pytest.mark.parametrize(
    ("stops", "tokens", "reason"),
    [
        (frozenset(), [100, 101, 102], FinishReason.LENGTH),
        (frozenset({102}), [100, 101], FinishReason.STOP),
        (frozenset({100}), [], FinishReason.STOP),
    ],
    ids=["length", "stop", "at once"],
)
async def test_tokens_then_one_end(stops: frozenset[int], tokens: list[int], reason: FinishReason) -> None:
    front = Front()
    await made(Model(), front).submit(asking(1, stops=stops), [])
    end = await front.end(1)
    assert isinstance(end, Done)
    assert end.reason is reason
    assert front.tokens(1) == tokens
    assert front.messages[-1] is end


async def test_who_does_not_stream_is_told_once() -> None:
    front = Front()
    scheduler = made(Model(), front)
    for request_id, stream in ((1, True), (2, False)):
        await scheduler.submit(asking(request_id).model_copy(update={"stream": stream}), [])
        await front.end(request_id)
    *streamed, end, whole = front.messages
    assert isinstance(end, Done)
    assert end.rest is None
    assert len(streamed) == 3
    assert isinstance(whole, Done)
    assert whole.rest is not None
    assert list(whole.rest.token_ids) == front.tokens(1)
    for told in (streamed, [whole.rest]):
        seconds = [moment for message in told if isinstance(message, Tokens) for moment in message.seconds]
        assert len(seconds) == 3
        assert seconds == sorted(seconds)


async def test_media_rows_stand_where_the_spans_say_and_ids_there_have_no_meaning() -> None:
    model, front = Model(), Front()
    await made(model, front).submit(with_picture(1, (1, 2)), [picture(0.5)])
    await front.end(1)
    (prompt,) = model.prompts
    assert prompt.embeddings[:, 0].tolist() == [9, 0.5, 0.5, 8]
    assert prompt.text_ids == (9, 8)


async def test_one_picture_may_have_several_spans() -> None:
    model, front = Model(), Front()
    await made(model, front).submit(with_picture(1, (0, 1), (3, 1)), [picture(0.25)])
    await front.end(1)
    assert model.prompts[0].embeddings[:, 0].tolist() == [0.25, 0, 0, 0.25]


@pytest.mark.parametrize("spans", [[(1, 1)], [(1, 3)]], ids=["too few", "too many"])
async def test_spans_that_do_not_match_the_rows_are_refused(spans: list[tuple[int, int]]) -> None:
    front = Front()
    await made(Model(), front).submit(with_picture(1, *spans), [picture(1)])
    end = await front.end(1)
    assert isinstance(end, Refused)
    assert "media positions" in str(end.failure)


async def test_no_more_run_at_once_than_there_are_places() -> None:
    model, front = Model(), Front()
    model.gate.clear()  # none ends before three have begun, however slowly they are embedded
    scheduler = made(model, front, max_running=3)
    for request_id in range(10):
        await scheduler.submit(asking(request_id, 10 * request_id + 10), [])
    await model.full.wait()
    model.gate.set()
    for request_id in range(10):
        await front.end(request_id)
        assert front.tokens(request_id) == [10 * request_id + 10 + step for step in range(3)]
    assert model.most == 3
    assert (scheduler.stats().running, scheduler.stats().waiting) == (0, 0)


async def test_first_come_first_served_and_the_running_take_turns() -> None:
    model, front = Model(), Front()
    scheduler = made(model, front, max_running=2)
    for request_id in range(4):
        await scheduler.submit(asking(request_id, tokens=5), [])
    for request_id in range(4):
        await front.end(request_id)
    ends = [message.request_id for message in front.messages if isinstance(message, Done)]
    assert sorted(ends[:2]) == [0, 1]
    first = [message.request_id for message in front.messages if isinstance(message, Tokens)][:6]
    assert {0, 1} == set(first)


async def test_a_full_queue_refuses_at_once() -> None:
    model, front = Model(), Front()
    model.gate.clear()
    scheduler = made(model, front, max_running=1)
    for request_id in range(MIN_WAITING):
        await scheduler.submit(asking(request_id), [])
        await asyncio.sleep(0)
    await model.started.wait()
    await scheduler.submit(asking(500), [])
    await scheduler.submit(asking(501), [])
    refused = await front.end(501)
    assert isinstance(refused, Refused)
    assert refused.failure.reason is Reason.SERVER_BUSY
    model.gate.set()
    assert isinstance(await front.end(500), Done)


async def test_a_cancelled_request_frees_its_place() -> None:
    model, front = Model(), Front()
    model.gate.clear()
    scheduler = made(model, front, max_running=1)
    await scheduler.submit(asking(1), [])
    await scheduler.submit(asking(2), [])
    await model.started.wait()
    scheduler.cancel(1)
    scheduler.cancel(99)
    end = await front.end(1)
    assert isinstance(end, Done)
    assert end.reason is FinishReason.CANCELLED
    model.gate.set()
    assert isinstance(await front.end(2), Done)
    assert model.running == 0


async def test_a_request_that_is_cancelled_as_it_comes_ends_too() -> None:
    model, front = Model(), Front()
    scheduler = made(model, front, max_running=1)
    await scheduler.submit(asking(1), [])
    scheduler.cancel(1)
    end = await asyncio.wait_for(front.end(1), 10)
    assert isinstance(end, Done)
    assert end.reason is FinishReason.CANCELLED
    stats = scheduler.stats()
    assert (stats.running, stats.waiting) == (0, 0)


async def test_a_request_that_waits_can_be_cancelled() -> None:
    model, front = Model(), Front()
    model.gate.clear()
    scheduler = made(model, front, max_running=1)
    await scheduler.submit(asking(1), [])
    await scheduler.submit(asking(2), [])
    await asyncio.sleep(0.01)
    scheduler.cancel(2)
    assert isinstance(await front.end(2), Done)
    assert scheduler.stats().waiting == 0
    model.gate.set()
    await front.end(1)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ProductError(Reason.INTERNAL, at="a", problem="b", remedy="c"), Reason.INTERNAL),
        (torch.OutOfMemoryError("full"), Reason.OUT_OF_GPU_MEMORY),
        (ValueError("secret of the user"), Reason.INTERNAL),
    ],
)
async def test_one_request_s_error_is_its_own(error: Exception, reason: Reason) -> None:
    model, front = Model(), Front()
    model.error = error
    scheduler = made(model, front)
    await scheduler.submit(asking(1), [])
    end = await front.end(1)
    assert isinstance(end, Refused)
    assert end.failure.reason is reason
    assert "secret" not in str(end.failure)
    assert not scheduler.lost.done()
    model.error = None
    await scheduler.submit(asking(2), [])
    assert isinstance(await front.end(2), Done)


async def test_a_lost_device_is_noticed() -> None:
    model, front = Model(), Front()
    model.error = torch.AcceleratorError("unspecified launch failure")
    scheduler = made(model, front)
    await scheduler.submit(asking(1), [])
    assert isinstance(await front.end(1), Refused)
    assert "unspecified launch failure" in str(await scheduler.lost)


async def test_close_ends_everything() -> None:
    model, front = Model(), Front()
    model.gate.clear()
    scheduler = made(model, front)
    for request_id in range(5):
        await scheduler.submit(asking(request_id), [])
    await asyncio.sleep(0.01)
    await scheduler.close()
    assert {message.request_id for message in front.messages if isinstance(message, Done)} == set(range(5))
    assert model.running == 0


async def test_times_add_up() -> None:
    front = Front()
    await made(Model(), front).submit(with_picture(1, (1, 2)), [picture(1)])
    end = await front.end(1)
    assert isinstance(end, Done)
    assert min(end.timing.queue, end.timing.encode, end.timing.generate) >= 0
