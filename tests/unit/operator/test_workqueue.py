"""A key waits once, is worked on by one at a time, comes back when it should, and backs off within bounds."""

from __future__ import annotations

import asyncio

from multimodal_operator.workqueue import FIRST_BACKOFF, LONGEST_BACKOFF, WorkQueue


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def idle(queue: WorkQueue) -> bool:
    return queue._next()[0] is None


async def test_a_key_waits_once() -> None:
    queue = WorkQueue(Clock())
    for _ in range(3):
        await queue.add("a")
    await queue.add("b")
    assert len(queue) == 2
    assert [await queue.take(), await queue.take()] == ["a", "b"]
    assert idle(queue)


async def test_a_key_at_work_waits_for_its_end() -> None:
    queue = WorkQueue(Clock())
    await queue.add("a")
    assert await queue.take() == "a"
    await queue.add("a")
    assert idle(queue)
    await queue.done("a", None)
    assert await queue.take() == "a"


async def test_an_event_is_earlier_than_the_next_look() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    await queue.add("a", 10)
    await queue.add("a", 1)
    await queue.add("a", 5)
    clock.time = 1
    assert await queue.take() == "a"
    await queue.done("a", 4)
    clock.time = 4.9
    assert idle(queue)
    clock.time = 5.1
    assert await queue.take() == "a"


async def test_failures_come_back_ever_later_and_a_success_forgets_them() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    await queue.add("a")
    delays = []
    for _ in range(20):
        key = await queue.take()
        delays.append(await queue.failed(key))
        clock.time += delays[-1] + 0.01
    for nth, delay in enumerate(delays):
        plain = min(FIRST_BACKOFF * 2**nth, LONGEST_BACKOFF)
        assert 0.75 * plain <= delay <= 1.25 * plain
    await queue.done(await queue.take(), 0)
    assert await queue.failed(await queue.take()) <= 1.25 * FIRST_BACKOFF


async def test_workers_share_the_keys_and_never_one_key() -> None:
    queue = WorkQueue()
    at_work: set[str] = set()
    counts = dict.fromkeys("abcde", 0)
    enough = asyncio.Event()

    async def work() -> None:
        while True:
            key = await queue.take()
            assert key not in at_work
            at_work.add(key)
            await asyncio.sleep(0)
            counts[key] += 1
            if min(counts.values()) >= 5:
                enough.set()
            at_work.remove(key)
            await queue.done(key, 0.001)

    workers = [asyncio.create_task(work()) for _ in range(3)]
    for key in counts:
        await queue.add(key)
    async with asyncio.timeout(10):
        await enough.wait()
    for worker in workers:
        assert not worker.done()
        worker.cancel()


async def test_a_busy_due_key_does_not_hide_the_next_one() -> None:
    queue = WorkQueue()
    await queue.add("a")
    assert await queue.take() == "a"
    await queue.add("a")  # due, but at work until the end of this test
    taker = asyncio.create_task(queue.take())
    await queue.add("b", 0.01)
    async with asyncio.timeout(5):
        assert await taker == "b"
