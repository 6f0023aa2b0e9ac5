"""Snapshot → actions: a table of edits, and the ends of things."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import multimodal_operator
from multimodal_api import labels
from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason
from multimodal_api.status import ConditionType, Phase
from multimodal_operator.kinds import DEPLOYMENT, Json
from multimodal_operator.plan import AddFinalizer, Apply, Create, Delete, plan
from multimodal_operator.snapshot import Ended, Snapshot
from support.snapshots import (
    MISSING,
    NOW,
    STORE_UID,
    a_job,
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

OTHER_SIZES = {"limits": {"maxInputLen": 8192}}


def written(seen: Snapshot, seconds: float = 0) -> list[str]:
    """Name the actions."""
    return [
        " ".join([type(action).__name__, getattr(getattr(action, "kind", None), "name", "")]).strip()
        for action in plan(seen, later(seconds)).actions
    ]


@pytest.mark.parametrize(
    ("edit", "actions"),
    [
        ({}, []),
        ({"serving": {"replicas": 3}}, ["Apply Deployment"]),
        (OTHER_SIZES, ["Create Job", "Delete Job"]),  # a new key: the old pods keep serving
        ({"triton": {"httpPort": 9500}}, ["Apply Service"]),
        ({"triton": {"modelName": "other"}}, ["Apply Deployment"]),
        ({"serving": {"nodeSelector": {"disk": "fast"}}}, ["Apply Deployment"]),
        ({"build": {"image": "other:1"}}, []),
        ({"engineStore": {"size": "30Gi"}}, ["Apply PersistentVolumeClaim"]),
        ({"deletionPolicy": "Retain"}, ["Apply PersistentVolumeClaim"]),
        ({"suspend": True}, ["Apply Deployment"]),
        ({"suspend": True, **OTHER_SIZES}, ["Delete Job", "Apply Deployment"]),
        ({"model": {**ready().resource.spec.model.model_dump(by_alias=True), "modality": "audio"}}, []),  # type: ignore[union-attr]
    ],
    ids=str,
)
def test_an_edit_touches_only_what_it_must(edit: Json, actions: list[str]) -> None:
    assert written(edited(ready(), **edit)) == actions


def test_a_new_resource_gets_its_finalizer_first() -> None:
    seen = building()
    fresh = replace(seen, resource=replace(seen.resource, finalizers=("theirs",)), children={}, jobs=(), pods=())
    assert plan(fresh, NOW).actions == (AddFinalizer(),)


def test_children_come_in_the_order_of_need() -> None:
    fresh = replace(building(), children={}, jobs=(), pods=())
    assert written(fresh) == ["Apply PersistentVolumeClaim", "Apply ServiceAccount", "Apply Service", "Create Job"]
    without_store = replace(fresh, claims={"checkpoints": claim("checkpoints")})
    assert "Create Job" not in written(without_store), "a Job names the uid of its store"


def test_pods_change_only_when_the_engine_is_built() -> None:
    rebuilding = edited(ready(), **OTHER_SIZES)
    wanted = want(rebuilding.resource)
    at_work = replace(rebuilding, jobs=(a_job(wanted),))
    assert written(at_work) == []
    scaled = edited(at_work, **OTHER_SIZES, serving={"replicas": 2})
    (scale,) = plan(scaled, NOW).actions
    assert isinstance(scale, Apply)
    assert scale.obj["spec"]["replicas"] == 2
    assert scale.obj["metadata"]["labels"][labels.LABEL_ENGINE_KEY] != wanted.key
    done = replace(at_work, jobs=(a_job(wanted, succeeded=True, finished=NOW),))
    (roll,) = plan(done, NOW).actions
    assert isinstance(roll, Apply)
    assert roll.kind is DEPLOYMENT
    assert roll.obj["metadata"]["labels"][labels.LABEL_ENGINE_KEY] == wanted.key


def test_drift_of_kept_pods_is_put_right_during_a_build() -> None:
    rebuilding = edited(ready(), **OTHER_SIZES)
    obj = rebuilding.children[DEPLOYMENT.name, "neva"]
    drifted = {**obj, "spec": {**obj["spec"], "progressDeadlineSeconds": 1}}
    seen = replace(
        rebuilding,
        jobs=(a_job(want(rebuilding.resource)),),
        children={**rebuilding.children, (DEPLOYMENT.name, "neva"): drifted},
    )
    (action,) = plan(seen, NOW).actions
    assert isinstance(action, Apply)
    assert action.obj["spec"] == obj["spec"]


@pytest.mark.parametrize(
    ("make", "seconds", "actions"),
    [
        (lambda: failed(building(), MISSING), 59, []),
        (lambda: failed(building(), MISSING), 60, ["Delete Job", "Create Job"]),
        (lambda: failed(building(), MISSING, run=2), 60, []),
        (lambda: failed(building(), MISSING, run=2), 120, ["Delete Job", "Create Job"]),
        (lambda: failed(building(), MISSING, run=7), 1e6, []),
        (lambda: failed(building(), MISSING.model_copy(update={"reason": Reason.LIMITS_TOO_SMALL})), 1e6, []),
        (lambda: failed(building(), MISSING, template="old"), 0, ["Delete Job", "Create Job"]),
        (lambda: with_job(building(), template="old"), 0, []),
        (lambda: with_pod(with_job(building(), template="old"), phase="Pending"), 0, ["Delete Job", "Create Job"]),
        (lambda: with_job(building(), deleting=True), 0, []),
        (lambda: with_job(ready(), store_uid="a claim of before", finished=NOW), 0, []),  # the Deployment is witness
    ],
)
def test_when_a_build_is_begun_anew(make: Callable[[], Snapshot], seconds: float, actions: list[str]) -> None:
    assert written(make(), seconds) == actions


def test_runs_are_counted() -> None:
    create = plan(failed(building(), MISSING, run=3), later(1e5)).actions[-1]
    assert isinstance(create, Create)
    assert create.obj["metadata"]["annotations"]["multimodal.dev/run"] == "4"


def test_a_store_made_anew_is_empty() -> None:
    seen = ready()
    renewed = replace(seen, claims={**seen.claims, "neva-engines": claim("neva-engines", "another")})
    actions = plan(renewed, NOW).actions
    assert [type(action) for action in actions] == [Delete, Create]
    assert isinstance(actions[1], Create)
    assert actions[1].obj["metadata"]["annotations"]["multimodal.dev/store-uid"] == "another"


def test_an_engine_that_servers_miss_is_built_again() -> None:
    lost = Failure(reason=Reason.ENGINE_CORRUPT, at="llm", problem="is cut short", remedy="build again")
    ended = Ended(exit_code=1, reason="Error", message=lost.model_dump_json(), at=later(5))
    seen = with_pod(ready(), ready=False, restarts=1, ended=ended)
    assert written(seen, 10) == []
    assert written(seen, 70) == ["Delete Job", "Create Job"]
    rebuilt = replace(seen, jobs=(replace(seen.jobs[0], finished=later(80)),))
    assert written(rebuilt, 90) == []


@pytest.mark.parametrize(
    ("others", "mine"),
    [
        ((), True),
        (("uid-of-other",), False),  # its maker still wants it
        (("uid-of-a-third",), True),  # nobody's any more: the first by name takes it over, and neva comes before other
    ],
)
def test_one_resource_answers_for_a_shared_job(others: tuple[str, ...], *, mine: bool) -> None:
    seen = building(engineStore={"claimName": "shared"})
    seen = failed(replace(seen, peers=tuple(peer(seen, uid=uid) for uid in others)), MISSING, owner_uid="uid-of-other")
    assert (written(seen, 60) == ["Delete Job", "Create Job"]) is mine


def test_a_job_that_others_want_stays() -> None:
    seen = ready(engineStore={"claimName": "shared"})
    wanting = replace(seen, peers=(peer(seen),))
    assert "Delete Job" not in written(edited(wanting, **OTHER_SIZES))
    idle = replace(seen, peers=(peer(seen, builds=False),))
    assert "Delete Job" in written(edited(idle, **OTHER_SIZES))


@pytest.mark.parametrize(
    ("spec", "others", "kept"),
    [
        ({}, (), None),
        ({"engineStore": {"claimName": "shared"}}, (), []),
        ({}, ("1111111111111111",), ["1111111111111111"]),
    ],
)
def test_only_a_store_of_our_own_is_swept(spec: Json, others: tuple[str, ...], kept: list[str] | None) -> None:
    seen = ready(**spec)
    old = want(seen.resource).key
    seen = replace(edited(seen, **OTHER_SIZES), peers=tuple(peer(seen, engine_key=key) for key in others))
    create = next(action for action in plan(seen, NOW).actions if isinstance(action, Create))
    args: list[str] = create.obj["spec"]["template"]["spec"]["containers"][0]["args"]
    given = [args[at + 1] for at, argument in enumerate(args) if argument == "--keep"]
    assert given == ([old] if kept is None else sorted([*kept, old]) if kept else [])


def test_a_first_build_in_a_store_of_our_own_sweeps_too() -> None:
    fresh = replace(building(), jobs=(), pods=())
    (create,) = plan(fresh, NOW).actions
    assert isinstance(create, Create)
    assert create.obj["spec"]["template"]["spec"]["containers"][0]["args"][-2:] == ["--keep", want(fresh.resource).key]


def leaving(seen: Snapshot, seconds: float = 0) -> Snapshot:
    return replace(seen, resource=replace(seen.resource, deleting_since=later(-seconds)))


def test_deletion_ends_pods_and_jobs_then_lets_go() -> None:
    first = plan(leaving(ready()), NOW)
    assert [action.kind.name for action in first.actions if isinstance(action, Delete)] == ["Deployment", "Job"]
    assert not first.release
    assert first.status.phase is Phase.DELETING
    waiting = plan(leaving(replace(ready(), deployment=None, jobs=())), NOW)
    assert (waiting.actions, waiting.release, waiting.look_again) == ((), False, 180)
    last = plan(leaving(replace(ready(), deployment=None, jobs=(), pods=())), NOW)
    assert last.release
    assert not last.overdue


def test_deletion_does_not_wait_for_a_lost_node() -> None:
    stuck = plan(leaving(ready(), 180), NOW)
    assert stuck.release
    assert stuck.overdue
    assert "neva-0" in stuck.status.conditions[0].message


def test_deletion_leaves_the_jobs_and_pods_of_others() -> None:
    seen = building(engineStore={"claimName": "shared"})
    theirs = with_job(replace(seen, peers=(peer(seen),)), owner_uid="uid-of-other")
    assert plan(leaving(theirs), NOW).actions == ()
    assert plan(leaving(theirs), NOW).release


def test_without_our_finalizer_nothing_is_done_to_what_goes() -> None:
    seen = leaving(ready())
    released = replace(seen, resource=replace(seen.resource, finalizers=("theirs",)))
    assert plan(released, NOW).actions == ()
    assert plan(released, NOW).status == released.resource.status


def test_a_specification_of_another_version_is_told_and_its_pods_left() -> None:
    seen = ready()
    problem = Failure(reason=Reason.INVALID, at="spec", problem="spec.colour: unknown", remedy="remove it")
    strange = replace(seen, resource=replace(seen.resource, spec=None, problem=problem))
    done = plan(strange, NOW)
    assert done.actions == ()
    assert "spec.colour" in done.status.conditions[0].message
    assert {condition.type for condition in done.status.conditions} == set(ConditionType)


def test_the_plan_is_a_function() -> None:
    for make in (building, ready, lambda: edited(ready(), **OTHER_SIZES)):
        assert plan(make(), NOW) == plan(make(), NOW)
    assert STORE_UID in ready().claims["neva-engines"].uid


PURE = ("plan", "policies", "engine", "status", "events", "want", "views", "differ", "diagnose", "quantity", "snapshot")


def test_the_core_knows_neither_kopf_nor_http_nor_the_clock() -> None:
    folder = Path(multimodal_operator.__file__).parent
    files = [folder / f"{name}.py" for name in PURE] + sorted((folder / "render").glob("*.py"))
    for file in files:
        tree = ast.parse(file.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        outer = {name.split(".")[0] for name in names}
        assert not outer & {"kopf", "aiohttp", "asyncio", "time", "random", "prometheus_client"}, file
        assert "datetime.now(" not in file.read_text(), file
