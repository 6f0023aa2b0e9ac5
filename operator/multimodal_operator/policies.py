"""Why a resource is as it is: small named checks, one ordered tuple per duty; the first that speaks is the condition.

Each is pure. A policy's finding carries the reason of the closed list; nothing here acts, `plan` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from multimodal_api.build import Outcome
from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason
from multimodal_api.rules import breaches
from multimodal_api.status import ConditionStatus, ConditionType
from multimodal_operator import diagnose, quantity
from multimodal_operator.engine import EngineState, Step
from multimodal_operator.kinds import CLAIM, DEPLOYMENT, JOB, SERVICE, SERVICE_ACCOUNT
from multimodal_operator.snapshot import Purpose, Snapshot
from multimodal_operator.want import SERVING, Wanted

if TYPE_CHECKING:
    from datetime import datetime

CLAIM_POLL_SECONDS: Final = 5.0
"""A user's claim has no label of ours, so no watch tells when it appears."""


PODLESS_POLL_SECONDS: Final = 5.0
"""Why a Job gets no pod is told in events only, which nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All that a policy may look at."""

    want: Wanted
    seen: Snapshot
    engine: EngineState
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a policy says of its duty."""

    status: ConditionStatus
    reason: Reason
    message: str
    look_again: float | None = None
    """Seconds until the next look, where no event will tell of a change."""

    @property
    def holds(self) -> bool:
        """The duty is done."""
        return self.status is ConditionStatus.TRUE


Policy = Callable[[Case], Finding | None]


def done(reason: Reason, message: str) -> Finding:
    """Say that the duty is done."""
    return Finding(status=ConditionStatus.TRUE, reason=reason, message=message)


def not_yet(reason: Reason, message: str, look_again: float | None = None) -> Finding:
    """Say that the duty is not done."""
    return Finding(status=ConditionStatus.FALSE, reason=reason, message=message, look_again=look_again)


def open_question(message: str) -> Finding:
    """Say that an earlier duty comes first."""
    return Finding(status=ConditionStatus.UNKNOWN, reason=Reason.PENDING, message=message)


def failed(failure: Failure, look_again: float | None = None) -> Finding:
    """Say what is wrong."""
    return not_yet(failure.reason, str(failure), look_again)


# Accepted


def specification_breaks_a_rule(case: Case) -> Finding | None:
    """The rules that admission enforces, for resources stored before a rule existed; all breaches at once."""
    found = breaches(case.want.spec)
    if not found:
        return None
    return not_yet(found[0].reason, "; ".join(str(failure) for failure in found))


def store_cannot_become_that(case: Case) -> Finding | None:
    """Class and access modes of a claim never change, and it never shrinks."""
    store, claim = case.want.spec.engine_store, case.seen.claims.get(case.want.store)
    if not case.want.owns_store or claim is None:
        return None
    wrong = {
        "storageClassName": (store.storage_class_name, claim.storage_class),
        "accessModes": (store.access_modes and sorted(store.access_modes), sorted(claim.access_modes)),
    }
    for field, (wish, fact) in wrong.items():
        if wish is not None and wish != fact:
            return failed(_unchangeable(case.want, field, wish, fact))
    if store.size is not None and (quantity.parse(store.size) or 0) < (quantity.parse(claim.size) or 0):
        return failed(_unchangeable(case.want, "size", store.size, claim.size))
    return None


def specification_is_sound(case: Case) -> Finding:
    """Nothing contradicts."""
    return done(Reason.ACCEPTED, f"the specification holds together; engine key {case.want.key}")


# SourceResolved


def source_claim_is_missing(case: Case) -> Finding | None:
    """A claim that the build would read does not exist."""
    for at, name in case.want.sources:
        if name not in case.seen.claims:
            return failed(_missing_claim(at, name), CLAIM_POLL_SECONDS)
    return None


def source_is_found(case: Case) -> Finding:
    """All claims exist; what lies in them is the build's first look."""
    names = sorted({name for _at, name in case.want.sources})
    if case.want.spec.engine.key is not None:
        return done(Reason.SOURCE_FOUND, "spec.engine.key names an engine: no checkpoint is read")
    if not names:
        return done(Reason.SOURCE_FOUND, "the checkpoints come from the Hub, which the build asks first")
    return done(Reason.SOURCE_FOUND, f"claim {', '.join(names)} exists")


# StorageReady


def store_is_refused(case: Case) -> Finding | None:
    """The API server refuses the claim."""
    return _refused(case, CLAIM.name)


def store_claim_is_missing(case: Case) -> Finding | None:
    """The user's claim does not exist, or ours was not made yet."""
    want = case.want
    if want.store in case.seen.claims:
        return None
    if want.owns_store:
        return not_yet(Reason.WAITING_FOR_STORAGE, f"claim {want.store} is not made yet")
    return failed(_missing_claim("spec.engineStore.claimName", want.store), CLAIM_POLL_SECONDS)


def store_is_going(case: Case) -> Finding | None:
    """Somebody deleted the claim; Kubernetes keeps it while pods use it."""
    if not case.seen.claims[case.want.store].deleting:
        return None
    return not_yet(Reason.WAITING_FOR_STORAGE, f"claim {case.want.store} is being deleted, with the engines on it")


def store_is_not_bound(case: Case) -> Finding | None:
    """No volume yet; with WaitForFirstConsumer it comes with the first pod."""
    phase = case.seen.claims[case.want.store].phase
    if phase == "Bound":
        return None
    # A claim of ours is watched; a user's is looked at.
    look_again = None if case.want.owns_store else CLAIM_POLL_SECONDS
    message = f"claim {case.want.store} is {phase}: its volume comes with the first pod, or see the claim's events"
    return not_yet(Reason.WAITING_FOR_STORAGE, message, look_again)


def store_is_ready(case: Case) -> Finding:
    """The claim is bound."""
    return done(Reason.STORAGE_READY, f"claim {case.want.store} is bound")


# EngineBuilt


def engine_is_known(case: Case) -> Finding | None:
    """A Job or the serving Deployment is witness."""
    if not case.engine.known:
        return None
    report, where = case.engine.report, f"engine {case.want.key} on claim {case.want.store}"
    if report is not None and report.outcome is Outcome.PUBLISHED:
        return done(Reason.ENGINE_PUBLISHED, f"{where} was built and verified")
    before = next(
        (item for item in case.seen.resource.status.conditions if item.type == ConditionType.ENGINE_BUILT), None
    )
    if report is None and before and before.status is ConditionStatus.TRUE and case.want.key in before.message:
        return done(before.reason, before.message)  # the Job that told is gone; what it told stays
    return done(Reason.ENGINE_FOUND, f"{where} was there already: nothing was built")


def engine_waits_for_resume(case: Case) -> Finding | None:
    """No build is started while suspended."""
    if not case.want.spec.suspend:
        return None
    return not_yet(Reason.SUSPENDED, "spec.suspend is true: no engine is built")


def build_is_refused(case: Case) -> Finding | None:
    """The API server refuses the Job."""
    return _refused(case, JOB.name)


def engine_waits_for_claims(case: Case) -> Finding | None:
    """Without its claims the Job's pod could not start."""
    missing = [name for _at, name in case.want.sources if name not in case.seen.claims]
    if case.want.store not in case.seen.claims:
        missing.append(case.want.store)
    return open_question(f"waits for claim {', '.join(missing)}") if missing else None


def build_failed(case: Case) -> Finding | None:
    """The Job gave up; tells when it is tried again."""
    engine = case.engine
    if engine.step is not Step.FAILED or engine.failure is None:
        return None
    if engine.retry_at is None:
        return failed(engine.failure)
    message = f"{engine.failure} (tried again at {engine.retry_at:%H:%M:%SZ}, or at once after an edit)"
    return not_yet(engine.failure.reason, message, max((engine.retry_at - case.now).total_seconds(), 0.0))


def build_cannot_start(case: Case) -> Finding | None:
    """The Job's pod waits for a node, an image or a Secret."""
    job = case.engine.job
    pods = [pod for pod in case.seen.pods if job and pod.owner_uid == job.uid and not pod.started]
    found = next(filter(None, (diagnose.waiting(pod) for pod in pods)), None)
    return failed(found) if found else None


def build_gets_no_pod(case: Case) -> Finding | None:
    """A quota or an admission policy refuses the Job's pods, of which only an event tells."""
    job = case.engine.job
    if job is None or case.engine.step is not Step.WAIT or any(pod.owner_uid == job.uid for pod in case.seen.pods):
        return None
    if not case.seen.pods_refused:
        return not_yet(Reason.BUILDING_ENGINE, f"job {job.name} has no pod yet", PODLESS_POLL_SECONDS)
    failure = Failure(
        reason=Reason.QUOTA_EXCEEDED,
        at=f"job {job.name}",
        problem=case.seen.pods_refused,
        remedy="raise the quota, or adapt spec.build to it; the Job goes on by itself",
    )
    return failed(failure, PODLESS_POLL_SECONDS)


def another_builds(case: Case) -> Finding | None:
    """Another resource wants the same engine in the same store and was first."""
    job = case.engine.job
    if job is None or job.owner_uid == case.want.resource.uid:
        return None
    return not_yet(Reason.WAITING_FOR_BUILD, f"{job.owner_name} builds engine {case.want.key} with job {job.name}")


def engine_is_being_built(case: Case) -> Finding:
    """A Job is at work, or about to be made."""
    name, last = case.want.job_name(case.engine.purpose), _last_attempt(case)
    if case.engine.purpose is Purpose.BUILD:
        return not_yet(Reason.BUILDING_ENGINE, f"job {name} builds engine {case.want.key}{last}")
    if case.engine.purpose is Purpose.FIND:
        where = f"engine {case.want.key} on claim {case.want.store}"
        return not_yet(Reason.INSPECTING, f"job {name} looks for {where}{last}")
    return not_yet(Reason.INSPECTING, f"job {name} inspects the checkpoint before a GPU is asked for{last}")


# Deployed


def serving_is_refused(case: Case) -> Finding | None:
    """The API server refuses a serving object."""
    kinds = (SERVICE_ACCOUNT.name, SERVICE.name, DEPLOYMENT.name)
    return next(filter(None, (_refused(case, kind) for kind in kinds)), None)


def serving_is_suspended(case: Case) -> Finding | None:
    """No pods are wanted."""
    if not case.want.spec.suspend:
        return None
    left = case.seen.deployment.replicas if case.seen.deployment else 0
    return not_yet(Reason.SUSPENDED, f"spec.suspend is true: {left} pods left" if left else "spec.suspend is true")


def serving_waits_for_engine(case: Case) -> Finding | None:
    """Pods with the wanted engine start when it is built; those of the old one serve on."""
    if case.engine.known:
        return None
    return open_question(f"waits for engine {case.want.key}{still_serving(case)}")


def new_pods_do_not_answer(case: Case) -> Finding | None:
    """A pod of the wanted engine fails or cannot start."""
    deployment = case.seen.deployment
    if deployment is None:
        return None
    pods = [pod for pod in case.seen.pods if pod.component == SERVING and pod.engine_key == case.want.key]
    found = diagnose.rollout_failure(deployment, pods)
    if found is None or _is_rolled_out(case):
        return None
    return not_yet(found.reason, f"{found}{still_serving(case)}")


def pods_are_rolling_out(case: Case) -> Finding | None:
    """Pods are still replaced or started."""
    if _is_rolled_out(case):
        return None
    deployment = case.seen.deployment
    ready = min(deployment.updated, deployment.available) if deployment else 0
    return not_yet(Reason.ROLLING_OUT, f"{ready} of {case.want.replicas} pods serve engine {case.want.key}")


def all_pods_serve(case: Case) -> Finding:
    """Every pod is up to date and available."""
    return done(Reason.ROLLED_OUT, f"{case.want.replicas} of {case.want.replicas} pods serve engine {case.want.key}")


DUTIES: Final[Mapping[ConditionType, tuple[Policy, ...]]] = {
    ConditionType.ACCEPTED: (specification_breaks_a_rule, store_cannot_become_that, specification_is_sound),
    ConditionType.SOURCE_RESOLVED: (source_claim_is_missing, source_is_found),
    ConditionType.STORAGE_READY: (
        store_is_refused,
        store_claim_is_missing,
        store_is_going,
        store_is_not_bound,
        store_is_ready,
    ),
    ConditionType.ENGINE_BUILT: (
        engine_is_known,
        engine_waits_for_resume,
        build_is_refused,
        engine_waits_for_claims,
        build_failed,
        build_cannot_start,
        build_gets_no_pod,
        another_builds,
        engine_is_being_built,
    ),
    ConditionType.DEPLOYED: (
        serving_is_refused,
        serving_is_suspended,
        serving_waits_for_engine,
        new_pods_do_not_answer,
        pods_are_rolling_out,
        all_pods_serve,
    ),
}
"""In the order in which they come true."""


def judge(case: Case) -> dict[ConditionType, Finding]:
    """Give the finding of every duty; what follows a broken specification is an open question."""
    findings: dict[ConditionType, Finding] = {}
    for duty, policies in DUTIES.items():
        accepted = findings.get(ConditionType.ACCEPTED)
        if accepted is not None and not accepted.holds:
            findings[duty] = open_question("the specification comes first")
        else:
            findings[duty] = next(filter(None, (policy(case) for policy in policies)))
    return findings


def still_serving(case: Case) -> str:
    """Say which old engine serves meanwhile; empty when none does."""
    keys = {pod.engine_key for pod in case.seen.pods if pod.component == SERVING and pod.ready and not pod.deleting}
    old = sorted(keys - {case.want.key})
    return f"; engine {', '.join(old)} still serves" if old else ""


def _last_attempt(case: Case) -> str:
    """Say how the attempt before this one ended; empty on the first."""
    job = case.engine.job
    if job is None or not job.pods_failed:
        return ""
    ended = sorted(
        (pod for pod in case.seen.pods if pod.owner_uid == job.uid), key=lambda pod: pod.created, reverse=True
    )
    found = next(filter(None, (diagnose.death(pod) for pod in ended)), None)
    return f" (attempt {job.pods_failed + 1}; the last one ended: {found})" if found else ""


def _is_rolled_out(case: Case) -> bool:
    deployment, replicas = case.seen.deployment, case.want.replicas
    return (
        deployment is not None
        and deployment.engine_key == case.want.key
        and deployment.observed_generation >= deployment.generation
        and deployment.replicas == deployment.updated == replicas
        and deployment.available >= replicas
    )


def _refused(case: Case, kind: str) -> Finding | None:
    found = next((refusal for refusal in case.seen.refusals if refusal.kind == kind), None)
    return failed(found.failure) if found else None


def _missing_claim(at: str, name: str) -> Failure:
    return Failure(
        reason=Reason.CLAIM_NOT_FOUND,
        at=at,
        problem=f"there is no PersistentVolumeClaim '{name}' in this namespace",
        remedy="create it, or name another",
    )


def _unchangeable(want: Wanted, field: str, wish: object, fact: object) -> Failure:
    return Failure(
        reason=Reason.INVALID,
        at=f"spec.engineStore.{field}",
        problem=f"{wish} cannot be given to claim {want.store}, which has {fact}",
        remedy="write what it has, or make a claim and name it in spec.engineStore.claimName",
    )
