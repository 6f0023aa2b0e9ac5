"""The running operator: lists first, then workers over one queue, and a full list now and then."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING

from multimodal_api.labels import LABEL_MANAGED_BY, MANAGED_BY
from multimodal_api.logs import FIELDS
from multimodal_api.reasons import Reason
from multimodal_operator import metrics
from multimodal_operator.kinds import RESOURCE, WATCHED_CHILDREN, Json, Kind
from multimodal_operator.kube import KubeError
from multimodal_operator.settings import FIRST_RESYNCS, RESYNC_SECONDS, WORKERS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multimodal_operator.health import Health
    from multimodal_operator.kube import Kube
    from multimodal_operator.mirror import Key, Mirror
    from multimodal_operator.reconcile import Reconciler
    from multimodal_operator.workqueue import WorkQueue

SELECTOR = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
"""Server-side: of the cluster's pods and Jobs only ours are ever sent."""
logger = logging.getLogger(__name__)


class Operator:
    """Everything behind the triggers."""

    def __init__(
        self,
        *,
        kube: Kube,
        mirror: Mirror,
        queue: WorkQueue,
        reconciler: Reconciler,
        health: Health,
        namespaces: tuple[str, ...],
    ) -> None:
        self._kube = kube
        self._mirror = mirror
        self._queue = queue
        self._reconciler = reconciler
        self._health = health
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)

    async def seen(self, kind: Kind, event: str | None, obj: Json) -> None:
        """Take in a watch event; which one it was ends here."""
        concerned = self._mirror.drop(kind, obj) if event == "DELETED" else self._mirror.put(kind, obj)
        await self._enqueue(concerned)

    async def resync(self) -> None:
        """List everything and look at every resource: what a watch lost is found here.

        Raises:
            KubeError: The API server could not be asked.
        """
        for namespace in self._namespaces:
            for kind in (RESOURCE, *WATCHED_CHILDREN):
                objs, version = await self._kube.list(kind, namespace, labels="" if kind is RESOURCE else SELECTOR)
                await self._enqueue(self._mirror.replace(kind, objs, version, namespace))
        await self._enqueue(self._mirror.resources())
        metrics.RESYNC_TIME.set_to_current_time()

    async def resync_forever(self) -> None:
        """List again soon after the start, then every few minutes; a list that fails waits for the next."""
        for wait in itertools.chain(FIRST_RESYNCS, itertools.repeat(RESYNC_SECONDS)):
            await asyncio.sleep(wait)
            try:
                await self.resync()
            except KubeError as error:
                logger.warning("full list failed", extra={FIELDS: {"error": str(error)}})

    async def work(self, stopping: asyncio.Event) -> None:
        """Run the workers until `stopping` is set; what is at work then is finished."""
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(self._work(f"worker {number}")) for number in range(WORKERS)]
            await stopping.wait()
            for worker in workers:
                worker.cancel()

    async def _work(self, part: str) -> None:
        while True:
            key = await self._queue.take()
            self._health.beat(part)
            # A stop waits for the pass at work: half a pass is no harm, but a whole one is better.
            passing = asyncio.ensure_future(self._reconcile(key))
            try:
                await asyncio.shield(passing)
            except asyncio.CancelledError:
                await passing
                raise
            finally:
                self._health.rest(part)

    async def _reconcile(self, key: str) -> None:
        namespace, _, name = key.partition("/")
        with metrics.RECONCILE_SECONDS.time():
            try:
                look_again = await self._reconciler.reconcile(namespace, name)
            except KubeError as error:
                metrics.ERRORS.labels(error.reason).inc()
                logger.warning("the API server refuses", extra={FIELDS: {"resource": key, "error": str(error)}})
            except Exception:  # a defect of one resource must not stop the others
                metrics.ERRORS.labels(Reason.INTERNAL.value).inc()
                logger.exception("defect", extra={FIELDS: {"resource": key}})
            else:
                metrics.RECONCILES.labels("done").inc()
                await self._queue.done(key, look_again)
                return
        metrics.RECONCILES.labels("failed").inc()
        await self._queue.failed(key)

    async def _enqueue(self, keys: Iterable[Key]) -> None:
        for namespace, name in keys:
            if self._mirror.get(RESOURCE, namespace, name) is not None:
                await self._queue.add(f"{namespace}/{name}")
