"""Snapshot and time → what to do, what to report, when to look again.

Pure: the same snapshot and time give the same plan, so a test is a table of snapshots. Nothing here knows kopf or HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from multimodal_api.labels import FINALIZER
from multimodal_api.status import ConditionType
from multimodal_operator import quantity, status
from multimodal_operator.differ import must_apply
from multimodal_operator.engine import Step, assess
from multimodal_operator.kinds import CLAIM, DEPLOYMENT, JOB, SERVICE, SERVICE_ACCOUNT, Json, Kind
from multimodal_operator.policies import Case, judge
from multimodal_operator.render import deployment as render_deployment
from multimodal_operator.render import job as render_job
from multimodal_operator.render import pvc, service, service_account
from multimodal_operator.render.common import seal
from multimodal_operator.want import resolve, store_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from multimodal_api.status import Status
    from multimodal_operator.policies import Finding
    from multimodal_operator.snapshot import Job, Snapshot
    from multimodal_operator.want import Wanted

DELETION_DEADLINE: Final = timedelta(seconds=180)
"""Pods end within their grace period of 68 s unless their node is gone; then the resource is released without them."""
POLL_FASTEST: Final = 2.0
POLL_SLOWEST: Final = 10.0
POLL_PART: Final = 0.1
"""A build is asked for its progress every tenth of its age, within these bounds in seconds."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of a child."""

    kind: Kind
    obj: Json


@dataclass(frozen=True, slots=True)
class Create:
    """Creation of a child that is never changed afterwards."""

    kind: Kind
    obj: Json


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletion of exactly the child that was seen; its dependents follow."""

    kind: Kind
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    """From now on the resource stays until its pods have ended."""


Action = Apply | Create | Delete | AddFinalizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The next step for one resource."""

    actions: tuple[Action, ...]
    """In order; each may be repeated without harm."""
    status: Status
    look_again: float | None = None
    """Seconds, where no event will tell of a change."""
    release: bool = False
    """The finalizer is taken away once the status is written: the resource may go."""
    overdue: bool = False
    """It is released although pods are left."""


def plan(seen: Snapshot, now: datetime) -> Plan:
    """Decide the next step."""
    resource = seen.resource
    if resource.deleting_since is not None:
        return _leave(seen, resource.deleting_since, now)
    if resource.spec is None:
        return Plan(actions=(), status=status.unreadable(resource, now))
    want = resolve(resource, resource.spec)
    case = Case(want=want, seen=seen, engine=assess(want, seen, now), now=now)
    findings = judge(case)
    looks = [finding.look_again for finding in findings.values() if finding.look_again is not None]
    if (poll := _poll(case)) is not None:
        looks.append(poll)
    return Plan(
        actions=tuple(_actions(case, findings)),
        status=status.report(case, findings),
        look_again=min(looks, default=None),
    )


def _actions(case: Case, findings: dict[ConditionType, Finding]) -> Iterator[Action]:
    want, seen = case.want, case.seen
    if FINALIZER not in want.resource.finalizers:
        # Before any child: a resource that is deleted at once must not leave one.
        yield AddFinalizer()
        return
    if not findings[ConditionType.ACCEPTED].holds:
        return
    if want.owns_store:
        yield from _apply(seen, CLAIM, _claim(want, seen))
    yield from _apply(seen, SERVICE_ACCOUNT, service_account.service_account(want))
    yield from _apply(seen, SERVICE, service.service(want))
    if not want.spec.suspend and findings[ConditionType.SOURCE_RESOLVED].holds and want.store in seen.claims:
        yield from _build(case)
    yield from _abandon(case)
    yield from _serve(case)


def _apply(seen: Snapshot, kind: Kind, rendered: Json) -> Iterator[Action]:
    name, sealed = rendered["metadata"]["name"], seal(rendered)
    if not _is_refused(seen, kind, name) and must_apply(sealed, seen.children.get((kind.name, name))):
        yield Apply(kind, sealed)


def _claim(want: Wanted, seen: Snapshot) -> Json:
    """Give the claim; of one that exists only the size may change, and only upwards (a policy tells the user)."""
    rendered, found = pvc.claim(want), seen.claims.get(want.store)
    if found is None:
        return rendered
    wish = rendered["spec"]["resources"]["requests"]["storage"]
    size = wish if (quantity.parse(wish) or 0) > (quantity.parse(found.size) or 0) else found.size
    spec: Json = {"accessModes": list(found.access_modes), "resources": {"requests": {"storage": size}}}
    if found.storage_class is not None:
        spec["storageClassName"] = found.storage_class  # else the apply would take it away, which is refused
    return {**rendered, "spec": spec}


def _build(case: Case) -> Iterator[Action]:
    want, seen, engine = case.want, case.seen, case.engine
    name = want.job_name(engine.purpose)
    if engine.step not in {Step.CREATE, Step.REPLACE} or _is_refused(seen, JOB, name):
        return
    if engine.job is not None:
        yield _delete_job(want, engine.job)
    store_uid = seen.claims[want.store].uid
    obj = render_job.job(
        want, seen.images, engine.purpose, store_uid=store_uid, run=engine.run, keep=_keys_to_keep(want, seen)
    )
    yield Create(JOB, obj)


def _keys_to_keep(want: Wanted, seen: Snapshot) -> tuple[str, ...]:
    """Name the engines in a store of our own that somebody serves or wants."""
    if not want.owns_store:
        return ()  # what else lies in a user's store is the user's business
    keys = {peer.engine_key for peer in seen.peers}
    if seen.deployment is not None:
        keys.add(seen.deployment.engine_key)
    return tuple(sorted(keys - {want.key, ""})) or (want.key,)


def _abandon(case: Case) -> Iterator[Action]:
    """Delete our Jobs that nobody wants any more."""
    want, seen = case.want, case.seen
    wanted = {want.job_name(purpose) for purpose in want.purposes}
    store = store_digest(want.store)
    peers = {peer.engine_key for peer in seen.peers if peer.builds}
    for job in seen.jobs:
        if job.owner_uid != want.resource.uid or job.deleting or (job.store == store and job.engine_key in peers):
            continue
        if job.name not in wanted or (want.spec.suspend and job.finished is None):
            yield _delete_job(want, job)


def _serve(case: Case) -> Iterator[Action]:
    """Serve the wanted engine once it is known; until then keep the pods of the one before as they are."""
    want, seen, found = case.want, case.seen, case.seen.deployment
    if case.engine.known:
        if found is None and want.spec.suspend:
            return
        store_uid = seen.claims[want.store].uid
        yield from _apply(seen, DEPLOYMENT, render_deployment.deployment(want, seen.images, store_uid=store_uid))
    elif found is not None and found.held_spec is not None:
        held = render_deployment.held(want, key=found.engine_key, spec=found.held_spec, store_uid=found.store_uid)
        yield from _apply(seen, DEPLOYMENT, held)


def _leave(seen: Snapshot, since: datetime, now: datetime) -> Plan:
    """Let pods and Jobs end, then let the resource go; the garbage collector takes what it owns."""
    resource = seen.resource
    if FINALIZER not in resource.finalizers:
        return Plan(actions=(), status=resource.status)
    shared = {job.uid for job in seen.jobs if job.owner_uid != resource.uid}
    pods = [pod for pod in seen.pods if pod.owner_uid not in shared]
    actions = tuple(_endings(seen))
    overdue = now >= since + DELETION_DEADLINE
    if (actions or pods) and not overdue:
        message = f"waits for {len(pods)} pods and their Jobs to end"
        look_again = (since + DELETION_DEADLINE - now).total_seconds()
        return Plan(actions=actions, status=status.leaving(resource, message, now), look_again=look_again)
    left = ", ".join(pod.name for pod in pods)
    message = f"released although these pods are left: {left}" if left else "all pods ended"
    return Plan(
        actions=actions,
        status=status.leaving(resource, message, now),
        release=True,
        overdue=bool(left),
    )


def _endings(seen: Snapshot) -> Iterator[Action]:
    resource = seen.resource
    if seen.deployment is not None and not seen.deployment.deleting:
        yield Delete(DEPLOYMENT, resource.namespace, resource.name, seen.deployment.uid)
    for job in seen.jobs:
        if job.owner_uid == resource.uid and not job.deleting:
            yield Delete(JOB, resource.namespace, job.name, job.uid)
    if resource.spec is not None:
        want = resolve(resource, resource.spec)
        if want.owns_store and (CLAIM.name, want.store) in seen.children:
            yield from _apply(seen, CLAIM, _claim(want, seen))  # it may have changed hands with deletionPolicy


def _delete_job(want: Wanted, job: Job) -> Delete:
    return Delete(JOB, want.namespace, job.name, job.uid)


def _poll(case: Case) -> float | None:
    """Tell when to ask a build for its progress."""
    job = case.engine.job
    if job is None or job.finished is not None or case.engine.step is not Step.WAIT:
        return None
    if not any(pod.started and pod.owner_uid == job.uid for pod in case.seen.pods):
        return None
    age = (case.now - job.started).total_seconds() if job.started else 0.0
    return min(max(age * POLL_PART, POLL_FASTEST), POLL_SLOWEST)


def _is_refused(seen: Snapshot, kind: Kind, name: str) -> bool:
    return any((refusal.kind, refusal.name) == (kind.name, name) for refusal in seen.refusals)
