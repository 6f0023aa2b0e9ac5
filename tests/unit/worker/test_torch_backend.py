"""The batch and the backend around it, over a decoder that only counts: token after token, one more than the last."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from typing import Any

import pytest
import torch

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Sampling
from multimodal_modeling.kv import GRAIN, KvPool, KvShape, SequenceCache
from multimodal_worker.backends.base import GenerateRequest, Token
from multimodal_worker.backends.torch import TorchBackend, pool_positions
from multimodal_worker.batch import PREFILL_POSITIONS, Batch, Outcome
from multimodal_worker.device import DeviceThread
from support.tiny_engine import limits

VOCAB = 500
BROKEN = 499
"""After this token the model gives no numbers."""


class Counter:
    """Scores highest the token behind the last one; a prompt says its first token in its last position."""

    def __init__(self) -> None:
        self.prefilled: list[int] = []
        self.passes: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def prefill(self, embeddings: torch.Tensor, cache: SequenceCache) -> torch.Tensor:
        if self.error is not None and embeddings[-1, 0] == 13:
            raise self.error
        self.prefilled.append(len(embeddings))
        cache.length += len(embeddings)
        return self._after([int(embeddings[-1, 0]) - 1])[0]

    def decode(self, ids: list[int], pool: KvPool, caches: list[SequenceCache], *, rows: int) -> torch.Tensor:  # noqa: ARG002
        self.gate.wait()
        assert len(ids) == len(caches) <= rows
        self.passes.append(tuple(ids))
        for cache in caches:
            cache.length += 1
            assert cache.length <= len(cache.place)
        return self._after(ids)

    def _after(self, ids: list[int]) -> torch.Tensor:
        scores = torch.zeros(len(ids), VOCAB + 20)
        for row, token in enumerate(ids):
            scores[row, token + 1] = 1
            scores[row, VOCAB:] = 2  # padding
            if token == BROKEN:
                scores[row] = torch.nan
        return scores


def made(model: Counter, *, positions: int = 64 * GRAIN, rows: int = 4) -> Batch:
    pool = KvPool((KvShape(1, 1),), positions, dtype=torch.float32, device=torch.device("cpu"))
    return Batch(model, pool, VOCAB, rows)  # type: ignore[arg-type]


def asking(first: int, *, length: int = 3, tokens: int = 4, **changes: Any) -> GenerateRequest:
    embeddings = torch.zeros(length, 2)
    embeddings[-1] = first
    return GenerateRequest(
        **(
            {
                "embeddings": embeddings,
                "text_ids": (),
                "sampling": Sampling(),
                "max_new_tokens": tokens,
                "stop_token_ids": frozenset(),
            }
            | changes
        )
    )


def run(batch: Batch) -> list[tuple[int, object]]:
    """Step until nothing runs; give each sequence's first position and what it got."""
    said = []
    while batch:
        said += [(int(sequence.request.embeddings[-1, 0]), outcome) for sequence, outcome in batch.step()]
    return said


def test_a_long_prompt_is_taken_in_pieces_between_the_others_tokens() -> None:
    model = Counter()
    batch = made(model)
    batch.join(asking(10, tokens=6))
    batch.step()
    batch.join(asking(100, length=2 * PREFILL_POSITIONS + 5, tokens=1))
    said = run(batch)
    assert model.prefilled == [3, PREFILL_POSITIONS, PREFILL_POSITIONS, 5]
    assert model.passes == [(10,), (11,), (12,), (13,), (14,)]
    where = [first for first, _ in said].index(100)
    assert [first for first, _ in said[:where]] == [10, 10]  # one token beside each piece but the last


def test_short_prompts_share_a_step() -> None:
    model = Counter()
    batch = made(model)
    for first in range(10, 50, 10):
        batch.join(asking(first, length=PREFILL_POSITIONS // 3))
    batch.step()
    assert len(model.prefilled) == 4
    assert model.passes == [(10, 20, 30, 40)]


def test_more_sequences_than_rows_take_several_passes() -> None:
    model = Counter()
    batch = made(model, rows=2)
    for first in (10, 20, 30):
        batch.join(asking(first, tokens=2))
    run(batch)
    assert model.passes == [(10, 20), (30,)]


def test_an_error_is_the_end_of_its_sequence_alone() -> None:
    model = Counter()
    model.error = ValueError("no")
    batch = made(model)
    for first in (13, BROKEN - 1, 20):
        batch.join(asking(first))
    ends = {first: outcome for first, outcome in run(batch) if not isinstance(outcome, Token)}
    assert ends[13] is model.error
    assert isinstance(ends[BROKEN - 1], ProductError)
    assert ends[20] is None
    assert batch.pool.used == 0


def test_scores_come_where_they_are_asked_for() -> None:
    batch = made(Counter())
    batch.join(asking(10, tokens=1, top_logprobs=2))
    batch.join(asking(20, tokens=1))
    scores = {first: outcome.score for first, outcome in run(batch) if isinstance(outcome, Token)}
    assert scores[20] is None
    assert scores[10] is not None
    assert scores[10].top[0] == (10, scores[10].logprob)


async def collect(backend: TorchBackend, request: GenerateRequest) -> list[int]:
    async with aclosing(backend.generate(request)) as tokens:
        return [token.id async for token in tokens]


async def test_requests_join_and_leave_a_running_batch() -> None:
    model = Counter()
    backend = TorchBackend(made(model), DeviceThread())
    asked = [asking(10 * number, tokens=number % 7 + 1) for number in range(1, 20)]
    answers = await asyncio.gather(*(collect(backend, one) for one in asked))
    assert answers == [[10 * number + step for step in range(number % 7 + 1)] for number in range(1, 20)]
    assert max(map(len, model.passes)) == 4
    assert backend.stats().running == backend.stats().kv_positions_used == 0
    assert await collect(backend, asking(7, tokens=9, stop_token_ids=frozenset({9}))) == [7, 8]


async def test_who_does_not_stream_waits_for_the_whole_answer() -> None:
    model = Counter()
    backend = TorchBackend(made(model), DeviceThread())
    async with aclosing(backend.generate(asking(10, tokens=5, stream=False))) as tokens:
        first = await anext(tokens)
        assert model.passes == [(10,), (11,), (12,), (13,)]
        given = [first] + [token async for token in tokens]
    assert [token.id for token in given] == [10, 11, 12, 13, 14]
    moments = [token.at for token in given]
    assert moments == sorted(set(moments))


@pytest.mark.parametrize(("stream", "woken"), [(False, 1), (True, 49)])
async def test_the_loop_wakes_only_for_what_someone_waits_for(
    monkeypatch: pytest.MonkeyPatch, *, stream: bool, woken: int
) -> None:
    """Once for all tokens, or after each of 49 passes."""
    given: list[int] = []
    hand_out = TorchBackend._hand_out

    def counted(backend: TorchBackend, outcomes: list[Outcome]) -> None:
        given.append(len(outcomes))
        hand_out(backend, outcomes)

    monkeypatch.setattr(TorchBackend, "_hand_out", counted)
    answer = await collect(TorchBackend(made(Counter()), DeviceThread()), asking(10, tokens=50, stream=stream))
    assert answer == list(range(10, 60))
    assert len(given) == woken


async def test_others_get_the_device_between_two_steps() -> None:
    model, thread = Counter(), DeviceThread()
    backend = TorchBackend(made(model), thread)
    model.gate.clear()
    answer = asyncio.create_task(collect(backend, asking(10, tokens=50)))
    await asyncio.sleep(0.05)  # the step waits at the gate
    other = asyncio.create_task(thread.run(lambda: len(model.passes)))
    await asyncio.sleep(0)
    model.gate.set()
    assert await other == 1
    assert len(await answer) == 50


async def test_an_answer_goes_on_however_often_others_want_the_device() -> None:
    thread = DeviceThread()
    answer = asyncio.create_task(collect(TorchBackend(made(Counter()), thread), asking(10, tokens=50)))

    async def insist() -> None:
        while not answer.done():
            await thread.run(int)

    await asyncio.gather(*(insist() for _ in range(3)))
    assert await answer == list(range(10, 60))


async def test_a_cancelled_request_leaves_at_once_and_the_others_go_on() -> None:
    model = Counter()
    backend = TorchBackend(made(model), DeviceThread())
    other = asyncio.create_task(collect(backend, asking(200, tokens=100)))
    tokens = backend.generate(asking(10, tokens=100))
    assert (await anext(tokens)).id == 10
    await tokens.aclose()
    seen = sum(one < 200 for together in model.passes for one in together)
    assert backend.stats().running == 1
    assert await other == list(range(200, 300))
    assert sum(one < 200 for together in model.passes for one in together) <= seen + 1
    assert backend.stats().kv_positions_used == 0


async def test_who_cannot_join_hears_why_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = made(Counter())
    join = batch.join

    def picky(request: GenerateRequest) -> Any:
        if request.embeddings[-1, 0] == 13:
            raise KeyError("a defect")
        return join(request)

    monkeypatch.setattr(Batch, "join", lambda _, request: picky(request))
    backend = TorchBackend(batch, DeviceThread())
    answers = [collect(backend, asking(first, tokens=3)) for first in (10, 13, 20)]
    good, bad, other = await asyncio.gather(*answers, return_exceptions=True)
    assert (good, other) == ([10, 11, 12], [20, 21, 22])
    assert isinstance(bad, KeyError)
    assert backend.stats().running == backend.stats().waiting == backend.stats().kv_positions_used == 0


async def test_requests_wait_for_memory_in_their_order() -> None:
    model = Counter()
    backend = TorchBackend(made(model, positions=4 * GRAIN), DeviceThread())
    model.gate.clear()
    big = [asyncio.create_task(collect(backend, asking(first, length=2 * GRAIN, tokens=8))) for first in (10, 30)]
    small = asyncio.create_task(collect(backend, asking(50, tokens=2)))
    gone = backend.generate(asking(70, tokens=2))
    waiting = asyncio.create_task(anext(gone))
    await asyncio.sleep(0.05)
    assert backend.stats().waiting == 3
    assert backend.stats().kv_positions_used == 3 * GRAIN
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert backend.stats().waiting == 2
    model.gate.set()
    assert [answer[0] for answer in await asyncio.gather(*big, small)] == [10, 30, 50]
    first = [next(place for place, ids in enumerate(model.passes) if token in ids) for token in (10, 30, 50)]
    assert first == sorted(first)


async def test_what_can_never_fit_is_refused() -> None:
    backend = TorchBackend(made(Counter(), positions=4 * GRAIN), DeviceThread())
    assert len(await collect(backend, asking(1, length=60, tokens=5))) == 5
    with pytest.raises(ProductError, match="prompt and answer take up to 65 positions") as refused:
        await collect(backend, asking(1, length=60, tokens=6))
    assert refused.value.failure.reason is Reason.REQUEST_REFUSED


async def test_a_defect_of_the_batch_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = made(Counter())
    backend = TorchBackend(batch, DeviceThread())

    def broken(_self: Batch) -> None:
        raise KeyError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "step", broken)
        answers = await asyncio.gather(*(collect(backend, asking(one)) for one in (10, 20)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [KeyError, KeyError]
    assert await collect(backend, asking(30, tokens=2)) == [30, 31]
    assert backend.stats().kv_positions_used == 0


async def test_close_ends_a_running_batch() -> None:
    backend = TorchBackend(made(Counter()), DeviceThread())
    tokens = backend.generate(asking(1, tokens=300))
    await anext(tokens)
    await backend.close()


@pytest.mark.parametrize(
    ("free", "positions"),
    [(2**30, 4 * 192), (1000 * 300, 240), (1000 * 240, 192)],
    ids=["all at once", "fewer", "one"],
)
def test_memory_is_for_all_requests_or_for_what_fits(free: int, positions: int) -> None:
    sizes = limits(max_input_len=128, max_output_len=64, max_batch_size=4)
    assert pool_positions(sizes, max_positions=2048, position_bytes=1000, free_bytes=free, on_gpu=False) == positions


@pytest.mark.parametrize("on_gpu", [True, False])
def test_an_engine_whose_longest_request_does_not_fit_is_not_started(*, on_gpu: bool) -> None:
    with pytest.raises(ProductError, match=r"one request of 192 positions .* takes 0\.18 GiB .*0\.22 GiB are free"):
        pool_positions(
            limits(max_input_len=128, max_output_len=64),
            max_positions=2048,
            position_bytes=10**6,
            free_bytes=239 * 10**6,
            on_gpu=on_gpu,
        )
