"""Findings → the whole `status`. Pure; written only where it differs from what is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_api.reasons import Reason
from multimodal_api.status import (
    BuildStatus,
    Condition,
    ConditionStatus,
    ConditionType,
    EngineStatus,
    Phase,
    Status,
)
from multimodal_operator.engine import Step
from multimodal_operator.policies import Case, Finding, done, not_yet, open_question, still_serving
from multimodal_operator.want import SERVING, selector_labels

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from multimodal_operator.snapshot import Resource

ON_THE_WAY: Final = frozenset(
    {
        Reason.PENDING,
        Reason.WAITING_FOR_STORAGE,
        Reason.INSPECTING,
        Reason.BUILDING_ENGINE,
        Reason.WAITING_FOR_BUILD,
        Reason.WAITING_FOR_GPU,
        Reason.UNSCHEDULABLE,
        Reason.ROLLING_OUT,
    }
)
"""Reasons that pass by themselves; any other that is not done asks for somebody's hand."""
_MESSAGE_LENGTH: Final = 4096


def report(case: Case, findings: Mapping[ConditionType, Finding]) -> Status:
    """Put together what is known of a resource that is not being deleted."""
    want, seen = case.want, case.seen
    ready = _ready(case, findings)
    deployment = seen.deployment
    return Status(
        observed_generation=want.resource.generation,
        phase=_phase(case, ready),
        conditions=_conditions({ConditionType.READY: ready, **findings}, want.resource, case.now),
        engine=EngineStatus(
            key=want.key,
            backend=want.backend,
            store=want.store,
            size_bytes=_size(case),
        ),
        serving_engine_key=_serving_key(case),
        build=_build(case),
        replicas=deployment.replicas if deployment else 0,
        ready_replicas=deployment.ready if deployment else 0,
        selector=selector(want.name),
        url=want.url,
        model_name=want.model_name,
    )


def unreadable(resource: Resource, now: datetime) -> Status:
    """Report a stored specification that this version cannot read; what the old one said of pods stays."""
    problem = resource.problem
    if problem is None:
        raise ValueError(f"{resource.key} has a specification that can be read")
    findings = {duty: open_question("the specification comes first") for duty in ConditionType}
    wrong = not_yet(problem.reason, str(problem))
    findings |= {ConditionType.READY: wrong, ConditionType.ACCEPTED: wrong}
    return resource.status.model_copy(
        update={
            "observed_generation": resource.generation,
            "phase": Phase.FAILED,
            "conditions": _conditions(findings, resource, now),
        }
    )


def leaving(resource: Resource, message: str, now: datetime) -> Status:
    """Report a deletion at work; the other conditions stay as they were."""
    findings = {ConditionType.READY: not_yet(Reason.DELETING, message)}
    others = [item for item in resource.status.conditions if item.type is not ConditionType.READY]
    return resource.status.model_copy(
        update={
            "observed_generation": resource.generation,
            "phase": Phase.DELETING,
            "conditions": (*_conditions(findings, resource, now), *others),
        }
    )


def selector(name: str) -> str:
    """Write the serving pods' labels as the scale subresource wants them."""
    return ",".join(f"{key}={value}" for key, value in selector_labels(name).items())


def _ready(case: Case, findings: Mapping[ConditionType, Finding]) -> Finding:
    accepted, engine = findings[ConditionType.ACCEPTED], findings[ConditionType.ENGINE_BUILT]
    deployed = findings[ConditionType.DEPLOYED]
    if accepted.holds and engine.holds and deployed.holds:
        # Claims matter on the way here; pods that answer need no further witness.
        return done(Reason.ALL_IS_WELL, f"{deployed.message} at {case.want.url}")
    if accepted.holds and case.want.spec.suspend:
        return not_yet(Reason.SUSPENDED, "spec.suspend is true")
    order = [accepted]
    if not engine.holds:
        order += [findings[ConditionType.SOURCE_RESOLVED], findings[ConditionType.STORAGE_READY], engine]
    open_ = [finding for finding in (*order, deployed) if not finding.holds]
    # What needs a hand is told before what passes by itself.
    first = next((finding for finding in open_ if finding.reason not in ON_THE_WAY), open_[0])
    serving = still_serving(case)
    message = first.message if first.message.endswith(serving) else first.message + serving
    return not_yet(first.reason, message)


def _phase(case: Case, ready: Finding) -> Phase:
    deployment = case.seen.deployment
    if ready.holds:
        return Phase.READY
    if ready.reason is Reason.SUSPENDED:
        return Phase.SUSPENDED
    if ready.reason not in ON_THE_WAY:
        return Phase.FAILED
    if deployment is not None and deployment.available:
        return Phase.UPDATING
    if case.engine.known:
        return Phase.DEPLOYING
    return Phase.BUILDING if case.engine.step is Step.WAIT else Phase.PENDING


def _conditions(findings: Mapping[ConditionType, Finding], resource: Resource, now: datetime) -> tuple[Condition, ...]:
    before = {condition.type: condition for condition in resource.status.conditions}
    return tuple(
        Condition(
            type=duty,
            status=finding.status,
            reason=finding.reason,
            message=finding.message[:_MESSAGE_LENGTH],
            observed_generation=resource.generation,
            last_transition_time=_since(before.get(duty), finding.status, now),
        )
        for duty, finding in findings.items()
    )


def _since(before: Condition | None, status: ConditionStatus, now: datetime) -> datetime:
    if before is not None and before.status is status:
        return before.last_transition_time
    return now.replace(microsecond=0)  # metav1.Time has whole seconds


def _size(case: Case) -> int | None:
    report = case.engine.report
    if report is not None and report.size_bytes is not None:
        return report.size_bytes
    before = case.want.resource.status.engine
    return before.size_bytes if before is not None and before.key == case.want.key else None


def _serving_key(case: Case) -> str | None:
    """Name the engine that answers: the old one until no ready pod has it any more."""
    keys = {pod.engine_key for pod in case.seen.pods if pod.component == SERVING and pod.ready and not pod.deleting}
    return next(iter(sorted(keys - {case.want.key})), case.want.key if case.want.key in keys else None)


def _build(case: Case) -> BuildStatus | None:
    job = case.engine.job
    if job is None:
        before = case.want.resource.status.build
        names = {case.want.job_name(purpose) for purpose in case.want.purposes}
        return before if before is not None and before.job_name in names else None
    at_work = case.seen.progress if job.finished is None else None
    told = case.seen.reports.get(job.uid)
    return BuildStatus(
        job_name=job.name,
        attempt=max(job.pods_failed + (0 if job.failure else 1), 1),
        stage=at_work.stage if at_work else told.stage if told else None,
        percent=at_work.percent if at_work else 100 if job.succeeded else None,
        started_at=job.started,
        finished_at=job.finished,
    )
