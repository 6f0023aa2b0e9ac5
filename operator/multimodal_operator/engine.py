"""What stands between the store and the wanted engine: is it known to be there, and if not, which Job is next. Pure.

The operator never mounts the store. Its witnesses are Jobs that succeeded and the Deployment that serves the engine;
each names the claim it was made with, so that a claim made anew is known to be empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from multimodal_api.build import BuildReport, Outcome
from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason
from multimodal_operator import diagnose
from multimodal_operator.render.job import template_digest
from multimodal_operator.snapshot import Job, Purpose
from multimodal_operator.want import SERVING

if TYPE_CHECKING:
    from multimodal_operator.snapshot import Snapshot
    from multimodal_operator.want import Wanted

RERUN_AFTER: Final = tuple(timedelta(minutes=minutes) for minutes in (1, 2, 5, 10, 10, 10))
"""Waits before work that failed is begun anew: its cause may be repaired outside (a file copied, room made).

After the last one the operator waits for an edit, or for the failed Job to be deleted by hand.
"""
HOPELESS: Final = frozenset(
    {
        Reason.INVALID,
        Reason.NOT_IMPLEMENTED,
        Reason.LIMITS_TOO_SMALL,
        Reason.UNSUPPORTED_MODEL,
        Reason.BACKEND_UNAVAILABLE,
    }
)
"""Failures that follow from specification and image alone: only an edit helps."""
_IDLE: Final = frozenset({"Pending", "Failed"})
"""Phases of a pod that does no work."""
LOST: Final = frozenset({Reason.ENGINE_NOT_FOUND, Reason.ENGINE_CORRUPT})
"""What a server says of an engine that must be built again."""


class Step(Enum):
    """What is to be done for the engine."""

    NOTHING = auto()
    """It is known to be in the store."""
    CREATE = auto()
    """A Job is missing."""
    REPLACE = auto()
    """The Job is out of date: delete it and make it anew."""
    WAIT = auto()
    """A Job is at work, or about to go."""
    FAILED = auto()
    """The Job failed; it may be run again later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """The engine's standing."""

    step: Step
    purpose: Purpose
    """Of the Job at hand."""
    job: Job | None = None
    """The Job at hand."""
    run: int = 1
    """Of the Job to make."""
    report: BuildReport | None = None
    """Of the Job that knows the engine."""
    failure: Failure | None = None
    retry_at: datetime | None = None
    mine: bool = True
    """This resource answers for the Job; else another that shares it does."""

    @property
    def known(self) -> bool:
        """The wanted engine is in the store."""
        return self.step is Step.NOTHING


def assess(want: Wanted, seen: Snapshot, now: datetime) -> EngineState:
    """Find the engine's standing: the first Job on the way that has not done its part decides."""
    claim = seen.claims.get(want.store)
    store_uid = claim.uid if claim else ""
    lost = _lost_at(want, seen)
    if claim is not None and lost is None and _is_served(want, seen, store_uid):
        return _told(want, seen)
    for purpose in want.purposes:
        job = _job(want, seen, purpose)
        if job is None:
            return EngineState(step=Step.CREATE, purpose=purpose)
        if not (job.succeeded and not job.deleting):
            return _unfinished(want, seen, purpose, job, now)
        if job.store_uid != store_uid:
            return EngineState(step=Step.REPLACE, purpose=purpose, job=job)
        report = seen.reports.get(job.uid)
        if lost is not None and job.finished is not None and job.finished <= lost:
            return _again(job, _lost_failure(want), now, mine=_answers_for(want, seen, job))
        if purpose is not Purpose.INSPECT or (report and report.outcome is Outcome.FOUND):
            return EngineState(step=Step.NOTHING, purpose=purpose, job=job, report=report)
    raise AssertionError(want.purposes)  # the last purpose is never INSPECT


def _told(want: Wanted, seen: Snapshot) -> EngineState:
    """Give the standing of an engine that is served: with the Job that made or found it, while that exists."""
    for purpose in want.purposes:
        job = _job(want, seen, purpose)
        report = seen.reports.get(job.uid) if job and job.succeeded else None
        if report is not None and report.outcome in {Outcome.FOUND, Outcome.PUBLISHED}:
            return EngineState(step=Step.NOTHING, purpose=purpose, job=job, report=report)
    return EngineState(step=Step.NOTHING, purpose=want.purposes[-1])


def _unfinished(want: Wanted, seen: Snapshot, purpose: Purpose, job: Job, now: datetime) -> EngineState:
    mine = _answers_for(want, seen, job)
    if job.deleting:
        return EngineState(step=Step.WAIT, purpose=purpose, job=job, mine=mine)
    outdated = job.template != template_digest(want, seen.images, purpose)
    if job.failure is None:
        # Work is not thrown away for a new setting; where none is going on, the new setting may be the remedy.
        idle = all(pod.phase in _IDLE for pod in seen.pods if pod.owner_uid == job.uid)
        replace = mine and outdated and idle
        return EngineState(step=Step.REPLACE if replace else Step.WAIT, purpose=purpose, job=job, mine=mine)
    if mine and outdated:
        return EngineState(step=Step.REPLACE, purpose=purpose, job=job)
    return _again(job, diagnose.job_failure(job, seen.pods), now, mine=mine)


def _again(job: Job, failure: Failure, now: datetime, *, mine: bool) -> EngineState:
    """Run failed work again, bounded and ever later."""
    state = EngineState(step=Step.FAILED, purpose=job.purpose, job=job, failure=failure, mine=mine)
    if failure.reason in HOPELESS or job.run > len(RERUN_AFTER) or job.finished is None:
        return state
    retry_at = job.finished + RERUN_AFTER[job.run - 1]
    step = Step.REPLACE if mine and now >= retry_at else Step.FAILED
    return EngineState(
        step=step, purpose=job.purpose, job=job, failure=failure, mine=mine, retry_at=retry_at, run=job.run + 1
    )


def _job(want: Wanted, seen: Snapshot, purpose: Purpose) -> Job | None:
    name = want.job_name(purpose)
    return next((job for job in seen.jobs if job.name == name), None)


def _answers_for(want: Wanted, seen: Snapshot, job: Job) -> bool:
    """Tell whether this resource remakes the Job: its owner does, or else the first that wants the engine."""
    if job.owner_uid == want.resource.uid:
        return True
    wanting = [peer for peer in seen.peers if peer.builds and peer.engine_key == job.engine_key]
    if any(peer.uid == job.owner_uid for peer in wanting):
        return False
    return all(want.name < peer.name for peer in wanting)


def _is_served(want: Wanted, seen: Snapshot, store_uid: str) -> bool:
    found = seen.deployment
    return found is not None and (found.engine_key, found.store_uid) == (want.key, store_uid)


def _lost_at(want: Wanted, seen: Snapshot) -> datetime | None:
    """Give the last time a server of the wanted engine found it missing or broken, unless one serves it now."""
    pods = [pod for pod in seen.pods if pod.component == SERVING and pod.engine_key == want.key and not pod.deleting]
    if any(pod.ready for pod in pods):
        return None
    failures = ((pod, diagnose.death(pod)) for pod in pods)
    times = [
        pod.ended.at for pod, failure in failures if pod.ended and pod.ended.at and failure and failure.reason in LOST
    ]
    return max(times, default=None)


def _lost_failure(want: Wanted) -> Failure:
    return Failure(
        reason=Reason.ENGINE_CORRUPT,
        at=f"engine {want.key} on claim {want.store}",
        problem="the server finds it missing or broken",
        remedy="it is built again; find out what changed the volume",
    )
