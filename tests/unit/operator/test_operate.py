"""The shell around the core: lists, workers, and a stop that leaves nothing half done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from faults.fake_api import FakeApi
from faults.harness import NAMESPACE, spec

from multimodal_api import labels
from multimodal_operator import operate
from multimodal_operator.health import Health
from multimodal_operator.kinds import RESOURCE, SERVICE, Json
from multimodal_operator.kube import Kube, KubeError
from multimodal_operator.mirror import Mirror
from multimodal_operator.operate import Operator
from multimodal_operator.workqueue import WorkQueue

KEY = f"{NAMESPACE}/neva"
OURS = {labels.LABEL_MANAGED_BY: labels.MANAGED_BY, labels.LABEL_INSTANCE: "neva"}


class Reconciler:
    """Stands where the core is: does what a test says, and counts."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.seen: list[str] = []

    async def reconcile(self, namespace: str, name: str) -> float | None:
        self.seen.append(f"{namespace}/{name}")
        result = self.act()
        if asyncio.iscoroutine(result):
            await result
        return None


def parts(act: Callable[[], object] = lambda: None) -> tuple[Operator, FakeApi, Mirror, WorkQueue, Reconciler]:
    api, mirror, queue, reconciler = FakeApi(), Mirror(), WorkQueue(), Reconciler(act)
    operator = Operator(
        kube=Kube(api),
        mirror=mirror,
        queue=queue,
        reconciler=reconciler,  # type: ignore[arg-type]
        health=Health(),
        namespaces=(),
    )
    return operator, api, mirror, queue, reconciler


def a_service() -> Json:
    return {"metadata": {"name": "neva", "namespace": NAMESPACE, "labels": OURS}, "spec": {"ports": []}}


async def test_an_event_becomes_a_key() -> None:
    operator, api, mirror, queue, _reconciler = parts()
    service = api.add(SERVICE, a_service())
    await operator.seen(SERVICE, "ADDED", service)
    assert len(queue) == 0, "it belongs to no resource that we know"
    await operator.seen(
        RESOURCE, None, api.add(RESOURCE, {"metadata": {"name": "neva", "namespace": NAMESPACE}, "spec": spec()})
    )
    assert await queue.take() == KEY
    await operator.seen(SERVICE, "DELETED", service)
    assert mirror.get(SERVICE, NAMESPACE, "neva") is None
    await queue.done(KEY, None)
    assert await queue.take() == KEY


async def test_what_went_before_the_watch_began_is_found_by_the_lists_after_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operate, "FIRST_RESYNCS", (0.01,))
    operator, api, mirror, queue, _reconciler = parts()
    api.add(RESOURCE, {"metadata": {"name": "neva", "namespace": NAMESPACE}, "spec": spec()})
    api.add(SERVICE, a_service())
    await operator.resync()
    assert await queue.take() == KEY
    await queue.done(KEY, None)
    api.delete(SERVICE, NAMESPACE, "neva")  # no event of it ever comes
    task = asyncio.create_task(operator.resync_forever())
    async with asyncio.timeout(10):
        assert await queue.take() == KEY
    assert mirror.get(SERVICE, NAMESPACE, "neva") is None
    task.cancel()


async def test_one_defect_stops_nobody() -> None:
    outcomes = iter([RuntimeError("a defect"), KubeError(403, "Forbidden", "no"), None])

    def act() -> None:
        outcome = next(outcomes)
        if outcome is not None:
            raise outcome

    operator, _api, _mirror, queue, reconciler = parts(act)
    stopping = asyncio.Event()
    workers = asyncio.create_task(operator.work(stopping))
    await queue.add(KEY)
    async with asyncio.timeout(10):
        while len(reconciler.seen) < 3:  # noqa: ASYNC110 -- the queue's own pauses are what is waited for
            await asyncio.sleep(0.01)
    assert not workers.done()
    stopping.set()
    async with asyncio.timeout(10):
        await workers


async def test_a_stop_waits_for_the_pass_at_work() -> None:
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await may_end.wait()
        ended.set()

    operator, _api, _mirror, queue, _reconciler = parts(slow)
    stopping = asyncio.Event()
    workers = asyncio.create_task(operator.work(stopping))
    await queue.add(KEY)
    await begun.wait()
    stopping.set()
    await asyncio.sleep(0.01)
    assert not workers.done()
    may_end.set()
    async with asyncio.timeout(10):
        await workers
    assert ended.is_set()
