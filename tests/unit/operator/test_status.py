"""Times of conditions, and what becomes an event."""

from __future__ import annotations

from dataclasses import replace

from multimodal_api.build import Progress, Stage
from multimodal_api.labels import KIND
from multimodal_api.reasons import Reason
from multimodal_api.status import ConditionStatus, ConditionType, Status
from multimodal_operator.events import event, is_warning, transitions
from multimodal_operator.plan import plan
from multimodal_operator.snapshot import Snapshot
from support.snapshots import MISSING, NOW, building, edited, failed, later, ready, want, with_job


def reported(seen: Snapshot, status: Status) -> Snapshot:
    return replace(seen, resource=replace(seen.resource, status=status))


def test_a_condition_keeps_its_time_while_it_keeps_its_status() -> None:
    first = plan(building(), NOW).status
    second = plan(reported(failed(building(), MISSING), first), later(90)).status
    times = {c.type: c.last_transition_time for c in second.conditions}
    assert times[ConditionType.ENGINE_BUILT] == NOW, "False before and after, only the reason changed"
    third = plan(reported(ready(), second), later(120)).status
    times = {c.type: c.last_transition_time for c in third.conditions}
    assert times[ConditionType.ENGINE_BUILT] == later(120)
    assert times[ConditionType.ACCEPTED] == NOW


def test_a_second_look_reports_the_same() -> None:
    for seen in (building(), ready(), failed(building(), MISSING)):
        first = plan(seen, NOW).status
        assert plan(reported(seen, first), later(30)).status == first


def test_a_status_survives_the_way_through_the_api_server() -> None:
    first = plan(ready(), NOW).status
    assert Status.model_validate(first.model_dump(mode="json", by_alias=True, exclude_none=True)) == first


def test_the_generation_is_told_with_every_condition() -> None:
    status = plan(edited(ready(), serving={"replicas": 2}), NOW).status
    assert status.observed_generation == 2
    assert {condition.observed_generation for condition in status.conditions} == {2}


def test_a_build_is_reported_while_it_runs_and_after() -> None:
    at_work = replace(building(), progress=Progress(stage=Stage.CONVERT, percent=40))
    build = plan(at_work, NOW).status.build
    assert build is not None
    assert (build.stage, build.percent, build.attempt) == (Stage.CONVERT, 40, 1)
    second = plan(with_job(at_work, pods_failed=1), NOW).status.build
    assert second is not None
    assert second.attempt == 2
    done = plan(ready(), NOW).status
    assert done.build is not None
    assert (done.build.stage, done.build.percent) == (Stage.PUBLISH, 100)
    assert done.engine is not None
    assert done.engine.size_bytes == 7


def test_what_a_job_told_outlives_the_job() -> None:
    first = plan(ready(), NOW).status
    gone = reported(replace(ready(), jobs=(), reports={}), first)
    status = plan(gone, later(9)).status
    assert status.engine == first.engine
    assert status.build == first.build
    built = {c.type: c.reason for c in status.conditions}[ConditionType.ENGINE_BUILT]
    assert built is Reason.ENGINE_PUBLISHED


def test_which_engine_answers() -> None:
    seen = ready(serving={"replicas": 2})
    key = want(seen.resource).key
    assert plan(seen, NOW).status.serving_engine_key == key
    mixed = replace(seen, pods=(seen.pods[0], replace(seen.pods[1], engine_key="0" * 16)))
    assert plan(mixed, NOW).status.serving_engine_key == "0" * 16
    silent = replace(seen, pods=tuple(replace(pod, ready=False) for pod in seen.pods))
    assert plan(silent, NOW).status.serving_engine_key is None


def test_events_tell_changes_once() -> None:
    first = plan(building(), NOW).status
    told = transitions(Status(), first)
    assert [condition.reason for condition in told] == [Reason.STORAGE_READY, Reason.BUILDING_ENGINE]
    assert transitions(first, first) == []
    broken = plan(failed(building(), MISSING), NOW).status
    (change,) = transitions(first, broken)
    assert change.reason is Reason.CHECKPOINT_NOT_FOUND
    assert is_warning(change)
    assert not any(is_warning(condition) for condition in told)


def test_an_event_has_the_form_that_the_api_server_wants() -> None:
    seen = building()
    made = event(seen.resource, Reason.BUILD_FAILED, "x" * 5000, warn=True, now=NOW, instance="operator-1")
    again = event(seen.resource, Reason.BUILD_FAILED, "x" * 5000, warn=True, now=NOW, instance="operator-2")
    assert made["metadata"]["name"] == again["metadata"]["name"], "a repetition after a crash is the same object"
    assert made["eventTime"] == "2026-11-23T12:00:00.000000Z"
    assert len(made["note"]) == 1024
    assert made["regarding"]["kind"] == KIND
    assert made["type"] == "Warning"


def test_a_first_look_says_unknown_and_not_false() -> None:
    fresh = replace(building(), jobs=(), pods=(), claims={})
    conditions = {c.type: c.status for c in plan(fresh, NOW).status.conditions}
    assert conditions[ConditionType.DEPLOYED] is ConditionStatus.UNKNOWN
