"""One resource, one pass: see, decide, act until nothing is left to do, then write the status once and tell of it."""

from __future__ import annotations

import dataclasses
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from multimodal_api.logs import FIELDS
from multimodal_api.reasons import Reason
from multimodal_api.status import ConditionStatus, ConditionType
from multimodal_operator import metrics
from multimodal_operator.kube import FORBIDDEN, KubeError
from multimodal_operator.plan import Plan, plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_api.status import Status
    from multimodal_operator.apply import Writer
    from multimodal_operator.observe import Observer
    from multimodal_operator.snapshot import Refusal, Resource, Snapshot

PASSES: Final = 8
"""Plans per reconcile: a claim, then the Job that names its uid, then what is no longer needed. More is a defect."""
REFUSED_SECONDS: Final = 15.0
"""Wait before a write that was refused (a quota, a name that is taken) is tried again."""
logger = logging.getLogger(__name__)


class Reconciler:
    """Brings one resource at a time where it should be."""

    def __init__(
        self, observer: Observer, writer: Writer, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._observer = observer
        self._writer = writer
        self._clock = clock

    async def reconcile(self, namespace: str, name: str) -> float | None:
        """Do all that can be done now.

        Returns:
            Seconds after which to look again, None when an event will tell.

        Raises:
            KubeError: The API server could not be asked or written to.
        """
        try:
            return await self._reconcile(namespace, name)
        except KubeError as error:
            resource = self._observer.resource(namespace, name)
            if error.code != FORBIDDEN or resource is None or resource.deleting_since is None:
                raise
            # The whole namespace goes, and our rights in it went first: what is left there ends without us.
            await self._writer.release(resource)
            return None

    async def _reconcile(self, namespace: str, name: str) -> float | None:
        refusals: tuple[Refusal, ...] = ()
        for _pass in range(PASSES):
            seen = await self._observer.snapshot(namespace, name)
            if seen is None:
                metrics.CENSUS.forget(f"{namespace}/{name}")
                return None
            now = self._clock()
            decided = plan(dataclasses.replace(seen, refusals=refusals), now)
            if not decided.actions or decided.overdue:
                return await self._finish(seen, decided, now, refused=bool(refusals))
            refusals += await self._act(seen, decided, now)
        raise AssertionError(f"{namespace}/{name}: the plan does not come to rest")

    async def _act(self, seen: Snapshot, decided: Plan, now: datetime) -> tuple[Refusal, ...]:
        refusals: list[Refusal] = []
        for action in decided.actions:
            logger.info("act", extra={FIELDS: {"resource": seen.resource.key, "action": _words(action)}})
            refusal = await self._writer.act(seen.resource, action, now)
            if refusal is not None:
                refusals.append(refusal)
        return tuple(refusals)

    async def _finish(self, seen: Snapshot, decided: Plan, now: datetime, *, refused: bool) -> float | None:
        resource, status = seen.resource, decided.status
        if status != resource.status:
            await self._writer.write_status(resource, status)
            await self._writer.tell(resource, status, now)
            metrics.observe_build(resource.status.build, status.build, built=_is_built(status))
        metrics.CENSUS.count(resource.key, status.phase, status.conditions[0].reason if status.conditions else "")
        if decided.release:
            await self._release(resource, decided, now)
            return None
        waits = [decided.look_again, REFUSED_SECONDS if refused else None]
        return min((wait for wait in waits if wait is not None), default=None)

    async def _release(self, resource: Resource, decided: Plan, now: datetime) -> None:
        if decided.overdue:
            note = decided.status.conditions[0].message
            await self._writer.emit(resource, Reason.DELETING, note, warn=True, now=now)
        await self._writer.release(resource)


def _is_built(status: Status) -> bool:
    conditions = {condition.type: condition.status for condition in status.conditions}
    return conditions.get(ConditionType.ENGINE_BUILT) is ConditionStatus.TRUE


def _words(action: object) -> str:
    obj = getattr(action, "obj", None)
    name = obj["metadata"]["name"] if obj else getattr(action, "name", "")
    kind = getattr(action, "kind", None)
    return " ".join(part for part in (type(action).__name__, kind.name if kind else "", name) if part)
