"""Why a resource is as it is: a table of snapshots, one line per reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from multimodal_api.build import BuildReport, Outcome, Stage
from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason
from multimodal_api.status import ConditionStatus, ConditionType, Phase
from multimodal_operator.plan import plan
from multimodal_operator.policies import DUTIES
from multimodal_operator.snapshot import Ended, Purpose, Refusal, Snapshot
from support.snapshots import (
    MISSING,
    NOW,
    building,
    claim,
    edited,
    failed,
    later,
    peer,
    ready,
    want,
    with_job,
    with_pod,
)

R, T = Reason, ConditionType
OTHER_SIZES = {"limits": {"maxInputLen": 8192}}
GPU = {"numGpus": 1, "engine": {"backend": "torch"}}
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


def without(seen: Snapshot, name: str) -> Snapshot:
    return replace(seen, claims={key: value for key, value in seen.claims.items() if key != name})


def with_claim(seen: Snapshot, name: str, **changes: object) -> Snapshot:
    return replace(seen, claims={**seen.claims, name: replace(seen.claims[name], **changes)})


def refused(seen: Snapshot, kind: str, reason: Reason) -> Snapshot:
    failure = Failure(reason=reason, at=kind, problem="exceeded quota", remedy="raise it")
    return replace(seen, refusals=(Refusal(kind=kind, name="neva", failure=failure),))


def serving_failure(seen: Snapshot, **changes: object) -> Snapshot:
    assert seen.deployment is not None
    return replace(with_pod(seen, ready=False, **changes), deployment=replace(seen.deployment, ready=0, available=0))


def inspected(outcome: Outcome) -> Snapshot:
    seen = with_job(building(**GPU), succeeded=True, finished=NOW)
    report = BuildReport(key=want(seen.resource).key, outcome=outcome, stage=Stage.INSPECT)
    return replace(seen, reports={seen.jobs[0].uid: report})


CASES: list[tuple[str, Callable[[], Snapshot], Reason, Phase, ConditionType, str]] = [
    ("served", ready, R.ALL_IS_WELL, Phase.READY, T.DEPLOYED, "1 of 1 pods"),
    ("building", building, R.BUILDING_ENGINE, Phase.BUILDING, T.ENGINE_BUILT, "builds engine"),
    (
        "contradiction",
        lambda: building(numGpus=0, engine={"backend": "vllm"}),
        R.INVALID,
        Phase.FAILED,
        T.ACCEPTED,
        "spec.engine.backend",
    ),
    (
        "not yet",
        lambda: building(model={"type": "neva", "visualCheckpoint": {"uri": "s3://bucket/neva.nemo"}}),
        R.NOT_IMPLEMENTED,
        Phase.FAILED,
        T.ACCEPTED,
        "uri",
    ),
    (
        "other store class",
        lambda: edited(ready(), engineStore={"storageClassName": "slow"}),
        R.INVALID,
        Phase.FAILED,
        T.ACCEPTED,
        "storageClassName",
    ),
    (
        "smaller store",
        lambda: edited(ready(), engineStore={"size": "1Gi"}),
        R.INVALID,
        Phase.FAILED,
        T.ACCEPTED,
        "spec.engineStore.size",
    ),
    (
        "no source",
        lambda: without(building(), "checkpoints"),
        R.CLAIM_NOT_FOUND,
        Phase.FAILED,
        T.SOURCE_RESOLVED,
        "visualCheckpoint.pvc.claimName",
    ),
    (
        "no store",
        lambda: without(building(engineStore={"claimName": "s"}), "s"),
        R.CLAIM_NOT_FOUND,
        Phase.FAILED,
        T.STORAGE_READY,
        "spec.engineStore.claimName",
    ),
    (
        "unbound store",
        lambda: with_claim(building(), "neva-engines", phase="Pending"),
        R.WAITING_FOR_STORAGE,
        Phase.BUILDING,
        T.STORAGE_READY,
        "Pending",
    ),
    (
        "store refused",
        lambda: refused(building(), "PersistentVolumeClaim", R.QUOTA_EXCEEDED),
        R.QUOTA_EXCEEDED,
        Phase.FAILED,
        T.STORAGE_READY,
        "exceeded quota",
    ),
    (
        "job refused",
        lambda: refused(building(), "Job", R.QUOTA_EXCEEDED),
        R.QUOTA_EXCEEDED,
        Phase.FAILED,
        T.ENGINE_BUILT,
        "exceeded quota",
    ),
    (
        "service taken",
        lambda: refused(building(), "Service", R.CONFLICT),
        R.CONFLICT,
        Phase.FAILED,
        T.DEPLOYED,
        "Service",
    ),
    (
        "build failed",
        lambda: failed(building(), MISSING),
        R.CHECKPOINT_NOT_FOUND,
        Phase.FAILED,
        T.ENGINE_BUILT,
        "tried again at 12:01:00Z",
    ),
    (
        "build deadline",
        lambda: with_job(building(), finished=NOW, failure=("DeadlineExceeded", "too long")),
        R.DEADLINE_EXCEEDED,
        Phase.FAILED,
        T.ENGINE_BUILT,
        "spec.build.deadlineSeconds",
    ),
    (
        "out of memory",
        lambda: with_job(
            with_pod(building(), ended=Ended(exit_code=137, reason="OOMKilled", message="", at=NOW)),
            finished=NOW,
            failure=("BackoffLimitExceeded", ""),
        ),
        R.OUT_OF_MEMORY,
        Phase.FAILED,
        T.ENGINE_BUILT,
        "spec.build.resources.limits.memory",
    ),
    (
        "died without words",
        lambda: with_job(
            with_pod(building(), ended=Ended(exit_code=1, reason="Error", message="Traceback", at=NOW)),
            finished=NOW,
            failure=("BackoffLimitExceeded", ""),
        ),
        R.BUILD_FAILED,
        Phase.FAILED,
        T.ENGINE_BUILT,
        "Traceback",
    ),
    (
        "no GPU",
        lambda: with_pod(building(), started=False, unscheduled=NO_GPU),
        R.WAITING_FOR_GPU,
        Phase.BUILDING,
        T.ENGINE_BUILT,
        NO_GPU,
    ),
    (
        "no node",
        lambda: with_pod(building(), started=False, unscheduled="1 Insufficient cpu"),
        R.UNSCHEDULABLE,
        Phase.BUILDING,
        T.ENGINE_BUILT,
        "Insufficient cpu",
    ),
    (
        "no image",
        lambda: with_pod(building(), started=False, waiting=("ImagePullBackOff", "no such image")),
        R.IMAGE_PULL_FAILED,
        Phase.FAILED,
        T.ENGINE_BUILT,
        "no such image",
    ),
    (
        "no secret",
        lambda: with_pod(building(), started=False, waiting=("CreateContainerConfigError", 'secret "t" not found')),
        R.SECRET_NOT_FOUND,
        Phase.FAILED,
        T.ENGINE_BUILT,
        '"t"',
    ),
    (
        "no pod",
        lambda: replace(building(), pods=(), pods_refused="exceeded quota"),
        R.QUOTA_EXCEEDED,
        Phase.FAILED,
        T.ENGINE_BUILT,
        "the Job goes on by itself",
    ),
    (
        "another builds",
        lambda: with_job(replace(building(), peers=(peer(building()),)), owner_uid="uid-of-other", owner_name="other"),
        R.WAITING_FOR_BUILD,
        Phase.BUILDING,
        T.ENGINE_BUILT,
        "other builds",
    ),
    ("inspecting", lambda: building(**GPU), R.INSPECTING, Phase.BUILDING, T.ENGINE_BUILT, "before a GPU is asked for"),
    (
        "inspected",
        lambda: inspected(Outcome.INSPECTED),
        R.BUILDING_ENGINE,
        Phase.PENDING,
        T.ENGINE_BUILT,
        "builds engine",
    ),
    (
        "found by inspection",
        lambda: inspected(Outcome.FOUND),
        R.ROLLING_OUT,
        Phase.DEPLOYING,
        T.DEPLOYED,
        "0 of 1 pods",
    ),
    (
        "looking for a key",
        lambda: building(engine={"key": "0123456789abcdef"}),
        R.INSPECTING,
        Phase.BUILDING,
        T.ENGINE_BUILT,
        "looks for engine 0123456789abcdef",
    ),
    ("suspended", lambda: edited(ready(), suspend=True), R.SUSPENDED, Phase.SUSPENDED, T.DEPLOYED, "1 pods left"),
    (
        "old engine serves",
        lambda: edited(ready(), **OTHER_SIZES),
        R.BUILDING_ENGINE,
        Phase.UPDATING,
        T.DEPLOYED,
        "still serves",
    ),
    (
        "server failed",
        lambda: serving_failure(
            ready(), restarts=2, ended=Ended(exit_code=1, reason="Error", message="bad weights", at=NOW)
        ),
        R.SERVER_FAILED,
        Phase.FAILED,
        T.DEPLOYED,
        "bad weights",
    ),
    (
        "server told why",
        lambda: serving_failure(
            ready(),
            restarts=1,
            ended=Ended(
                exit_code=1,
                reason="Error",
                message=MISSING.model_copy(update={"reason": R.DEVICE_MISSING}).model_dump_json(),
                at=NOW,
            ),
        ),
        R.DEVICE_MISSING,
        Phase.FAILED,
        T.DEPLOYED,
        "is no file",
    ),
    ("servers starting", lambda: serving_failure(ready()), R.ROLLING_OUT, Phase.DEPLOYING, T.DEPLOYED, "0 of 1 pods"),
]


@pytest.mark.parametrize(
    ("make", "reason", "phase", "duty", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_snapshot_has_its_reason(
    make: Callable[[], Snapshot], reason: Reason, phase: Phase, duty: ConditionType, words: str
) -> None:
    status = plan(make(), NOW).status
    conditions = {condition.type: condition for condition in status.conditions}
    assert set(conditions) == set(ConditionType), "every condition is there from the first look"
    assert (conditions[T.READY].reason, status.phase) == (reason, phase), conditions[T.READY].message
    assert words in conditions[duty].message
    assert (conditions[duty].status is ConditionStatus.TRUE) == (reason is R.ALL_IS_WELL)


def test_every_policy_can_speak() -> None:
    """No policy is dead: each speaks first in one of the cases, or in one of those below."""
    spoke = set()
    extra = [
        lambda: with_claim(ready(), "neva-engines", deleting=True),
        lambda: without(building(engine={"key": "0123456789abcdef"}), "neva-engines"),
        lambda: replace(building(suspend=True), jobs=(), pods=()),
        lambda: replace(building(), pods=()),
    ]
    for make in [case[1] for case in CASES] + extra:
        seen = make()
        reports = {condition.reason for condition in plan(seen, NOW).status.conditions}
        assert reports <= set(Reason)
        spoke |= _speakers(seen)
    assert {policy.__name__ for policies in DUTIES.values() for policy in policies} == spoke


def _speakers(seen: Snapshot) -> set[str]:
    from multimodal_operator.engine import assess  # noqa: PLC0415
    from multimodal_operator.policies import Case  # noqa: PLC0415

    wanted = want(seen.resource)
    case = Case(want=wanted, seen=seen, engine=assess(wanted, seen, NOW), now=NOW)
    accepted = next(policy for policy in DUTIES[T.ACCEPTED] if policy(case))
    if not (accepted(case) or pytest.fail("silence")).holds:
        return {accepted.__name__}
    return {next(policy.__name__ for policy in policies if policy(case)) for policies in DUTIES.values()}


def test_what_needs_a_hand_is_told_before_what_passes() -> None:
    seen = failed(with_claim(building(), "neva-engines", phase="Pending"), MISSING)
    assert plan(seen, NOW).status.conditions[0].reason is R.CHECKPOINT_NOT_FOUND


def test_a_missing_source_does_not_stop_what_is_served() -> None:
    status = plan(without(ready(), "checkpoints"), NOW).status
    conditions = {condition.type: condition.status for condition in status.conditions}
    assert conditions[T.READY] is ConditionStatus.TRUE
    assert conditions[T.SOURCE_RESOLVED] is ConditionStatus.FALSE


def test_a_failed_attempt_is_told_while_the_next_one_runs() -> None:
    ended = Ended(exit_code=1, reason="Error", message="disk on fire", at=NOW)
    seen = with_job(building(), pods_failed=1)
    (pod,) = seen.pods
    seen = replace(seen, pods=(replace(pod, name="first", phase="Failed", ended=ended), replace(pod, created=later(9))))
    message = {c.type: c.message for c in plan(seen, NOW).status.conditions}[T.ENGINE_BUILT]
    assert "attempt 2" in message
    assert "disk on fire" in message


@pytest.mark.parametrize(
    ("make", "seconds"),
    [
        (ready, None),
        (building, 2.0),
        (lambda: with_job(building(), started=later(-50)), 5.0),
        (lambda: with_job(building(), started=later(-5000)), 10.0),
        (lambda: replace(without(building(), "checkpoints"), jobs=()), 5.0),
        (lambda: failed(building(), MISSING), 60.0),
        (lambda: failed(building(), MISSING, run=7), None),
        (lambda: failed(building(), MISSING.model_copy(update={"reason": R.UNSUPPORTED_MODEL})), None),
    ],
)
def test_when_to_look_again(make: Callable[[], Snapshot], seconds: float | None) -> None:
    assert plan(make(), NOW).look_again == seconds


def test_purposes_are_all_of_them() -> None:
    assert {
        purpose
        for spec in ({}, GPU, {"engine": {"key": "0" * 16}})
        for purpose in want(building(**spec).resource).purposes
    } == set(Purpose)


def test_a_claim_of_the_users_is_looked_at_until_it_is_bound() -> None:
    seen = building(engineStore={"claimName": "s"})
    seen = replace(seen, claims={**seen.claims, "s": claim("s", phase="Pending")})
    assert plan(seen, NOW).look_again is not None
