"""The life of resources against the strict fake API: what is written for each change, and what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from faults.fake_api import RefusedError
from faults.harness import NAMESPACE, Harness, spec

from multimodal_api import labels
from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason
from multimodal_api.resource import Spec
from multimodal_operator.kinds import CLAIM, DEPLOYMENT, EVENT, JOB, KINDS, POD, RESOURCE, SERVICE, SERVICE_ACCOUNT

if TYPE_CHECKING:
    from faults.fake_api import Json

    from multimodal_operator.kinds import Kind

MISSING = Failure(
    reason=Reason.CHECKPOINT_NOT_FOUND, at="spec.model.visualCheckpoint.pvc.path", problem="no file", remedy="copy it"
)


@pytest.fixture
async def ready() -> Harness:
    harness = Harness()
    harness.claim("checkpoints")
    harness.create("neva", spec())
    await harness.settle()
    assert harness.condition("neva", "Ready")["status"] == "True", harness.states()
    return harness


def child(harness: Harness, kind: Kind, name: str = "neva") -> Json:
    found = harness.api.find(kind, NAMESPACE, name)
    assert found is not None, f"no {kind.name} {name}"
    return found


def key(harness: Harness, name: str = "neva") -> str:
    return str(harness.status(name)["engine"]["key"])


def reasons(harness: Harness) -> list[str]:
    return [event["reason"] for event in harness.api.all(EVENT)]


async def test_create_builds_once_and_serves(ready: Harness) -> None:
    status = ready.status("neva")
    assert status["phase"] == "Ready"
    assert status["servingEngineKey"] == key(ready)
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)
    assert {condition["status"] for condition in status["conditions"]} == {"True"}
    assert status["observedGeneration"] == 1
    assert ready.world.builds == [key(ready)]
    assert {"BuildingEngine", "EnginePublished", "RollingOut", "RolledOut", "AllIsWell"} <= set(reasons(ready))


async def test_nothing_is_written_when_nothing_changes(ready: Harness) -> None:
    writes = ready.api.writes
    await ready.resync()
    await ready.wait(3600)
    await ready.restart()
    await ready.settle()
    assert ready.api.writes == writes


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"serving": {"replicas": 3}}, ["deployments"]),
        ({"limits": {"maxInputLen": 8192}}, ["deployments", "jobs"]),
        ({"triton": {"httpPort": 9500}}, ["services"]),
        ({"triton": {"modelName": "other"}}, ["deployments"]),
        ({"serving": {"resources": {"limits": {"memory": "4Gi"}}}}, ["deployments"]),
        ({"build": {"deadlineSeconds": 100}}, []),
        ({"deletionPolicy": "Retain"}, ["persistentvolumeclaims"]),
        ({"engineStore": {"size": "30Gi"}}, ["persistentvolumeclaims"]),
        ({"numGpus": 0}, []),
    ],
    ids=str,
)
async def test_an_edit_touches_only_what_it_must(ready: Harness, change: Json, touched: list[str]) -> None:
    ready.api.calls.clear()
    before = ready.world.builds[:]
    ready.edit("neva", change)
    del ready.api.calls[:]
    await ready.settle()
    written = {plural for verb, plural, _ in ready.api.calls if verb not in {"get", "list"}}
    assert sorted(written - {"multimodaldeployments", "events"}) == touched
    assert (len(ready.world.builds) > len(before)) == ("jobs" in touched)
    assert ready.condition("neva", "Ready")["status"] == "True"


async def test_old_pods_serve_until_the_new_engine_is_ready(ready: Harness) -> None:
    old = key(ready)
    ready.world.served.clear()
    ready.edit("neva", {"limits": {"maxInputLen": 8192}})
    await ready.settle()
    new = key(ready)
    assert ready.world.builds == [old, new]
    assert frozenset() not in ready.world.served, "there was a moment without a pod that answers"
    assert ready.world.served[0] == {old}
    assert ready.world.served[-1] == {new}
    assert [job["metadata"]["labels"][labels.LABEL_ENGINE_KEY] for job in ready.api.all(JOB)] == [new]


async def test_going_back_builds_nothing(ready: Harness) -> None:
    old = key(ready)
    ready.world.stuck.add("build")
    ready.edit("neva", {"limits": {"maxInputLen": 8192}})
    await ready.settle()
    assert ready.status("neva")["phase"] == "Updating"
    assert ready.condition("neva", "Ready")["reason"] == "WaitingForGpu"
    ready.edit("neva", {"limits": None})
    await ready.settle()
    assert key(ready) == old
    assert ready.world.builds == [old]
    assert ready.condition("neva", "Ready")["status"] == "True"
    assert not ready.api.all(JOB)


async def test_a_failed_build_keeps_the_old_pods_and_an_edit_mends_it(ready: Harness) -> None:
    old = key(ready)
    ready.edit("neva", {"model": {"visualCheckpoint": {"pvc": {"path": "typo.nemo"}}}})
    resource = child(ready, RESOURCE)
    assert resource["spec"]["model"]["visualCheckpoint"]["pvc"]["path"] == "typo.nemo"
    ready.world.failures[Spec.model_validate(resource["spec"]).engine_key()] = MISSING
    await ready.settle()
    condition = ready.condition("neva", "Ready")
    assert (condition["status"], condition["reason"]) == ("False", "CheckpointNotFound")
    assert "copy it" in condition["message"]
    assert f"engine {old} still serves" in condition["message"]
    assert ready.status("neva")["phase"] == "Failed"
    assert ready.status("neva")["servingEngineKey"] == old
    ready.edit("neva", {"model": {"visualCheckpoint": {"pvc": {"path": "right.nemo"}}}})
    await ready.settle()
    assert ready.condition("neva", "Ready")["status"] == "True"
    assert ready.world.served[-1] == {key(ready)}
    assert frozenset() not in ready.world.served[1:]


async def test_a_failed_build_is_run_again_ever_later_and_not_for_ever() -> None:
    harness = Harness()
    harness.claim("checkpoints")
    harness.create("neva", spec())
    harness.world.failures |= {harness_key(): MISSING}
    await harness.settle()
    runs = {child_job(harness)["metadata"]["uid"]}
    for _minute in range(120):
        await harness.wait(60)
        runs.add(child_job(harness)["metadata"]["uid"])
    assert len(runs) == 7  # the first, and one per wait of RERUN_AFTER
    harness.world.failures.clear()
    harness.edit("neva", {"build": {"resources": {"limits": {"memory": "8Gi"}}}})
    await harness.settle()
    assert harness.condition("neva", "Ready")["status"] == "True"


async def test_a_cause_mended_outside_is_noticed() -> None:
    harness = Harness()
    harness.claim("checkpoints")
    harness.create("neva", spec())
    harness.world.failures |= {harness_key(): MISSING}
    await harness.settle()
    assert "tried again at 12:01:00Z" in harness.condition("neva", "EngineBuilt")["message"]
    harness.world.failures.clear()
    await harness.wait(61)
    assert harness.condition("neva", "Ready")["status"] == "True"


async def test_a_hopeless_build_waits_for_an_edit() -> None:
    harness = Harness()
    harness.claim("checkpoints")
    harness.create("neva", spec())
    hopeless = Failure(reason=Reason.UNSUPPORTED_MODEL, at="neva.nemo", problem="is a mamba", remedy="take another")
    harness.world.failures |= {harness_key(): hopeless}
    await harness.settle()
    uid = child_job(harness)["metadata"]["uid"]
    await harness.wait(36_000)
    assert child_job(harness)["metadata"]["uid"] == uid
    assert "tried again" not in harness.condition("neva", "EngineBuilt")["message"]


async def test_a_missing_claim_is_named_and_its_coming_noticed() -> None:
    harness = Harness()
    harness.create("neva", spec())
    await harness.settle()
    condition = harness.condition("neva", "Ready")
    assert condition["reason"] == "ClaimNotFound"
    assert "spec.model.visualCheckpoint.pvc.claimName" in condition["message"]
    assert not harness.api.all(JOB)
    harness.claim("checkpoints")
    await harness.wait(6)
    assert harness.condition("neva", "Ready")["status"] == "True"


async def test_deletion_ends_pods_first_and_leaves_nothing(ready: Harness) -> None:
    ready.delete("neva")
    await ready.settle()
    for kind in (RESOURCE, DEPLOYMENT, JOB, POD, SERVICE, SERVICE_ACCOUNT):
        assert not ready.api.all(kind), kind.name
    assert [claim["metadata"]["name"] for claim in ready.api.all(CLAIM)] == ["checkpoints"]


async def test_a_retained_store_outlives_the_resource_and_serves_the_next(ready: Harness) -> None:
    ready.edit("neva", {"deletionPolicy": "Retain"})
    ready.delete("neva")
    await ready.settle()
    assert {claim["metadata"]["name"] for claim in ready.api.all(CLAIM)} == {"checkpoints", "neva-engines"}
    ready.create("neva", spec())
    await ready.settle()
    assert ready.condition("neva", "EngineBuilt")["reason"] == "EngineFound"
    assert len(ready.world.builds) == 1


async def test_deletion_does_not_wait_for_ever(ready: Harness) -> None:
    pod = ready.api.all(POD)[-1]
    ready.api.edit(POD, NAMESPACE, pod["metadata"]["name"], {"metadata": {"finalizers": ["node/gone"]}})
    ready.delete("neva")
    await ready.settle()
    assert ready.status("neva")["phase"] == "Deleting"
    await ready.wait(181)
    assert ready.api.find(RESOURCE, NAMESPACE, "neva") is None
    notes = [event["note"] for event in ready.api.all(EVENT) if event["reason"] == "Deleting"]
    assert any(pod["metadata"]["name"] in note for note in notes)


async def test_a_namespace_that_takes_the_rights_with_it_is_let_go(ready: Harness) -> None:
    def forbid(_method: str, path: str) -> None:
        if not path.endswith("/multimodaldeployments/neva"):
            raise RefusedError(403, "Forbidden", f"no rights in a namespace that goes: {path}")

    ready.api.before = forbid
    ready.delete("neva")
    await ready.settle()
    assert ready.api.find(RESOURCE, NAMESPACE, "neva") is None


async def test_two_resources_build_one_engine_once() -> None:
    harness = Harness()
    harness.claim("checkpoints")
    harness.claim("shared")
    for name in ("anna", "berta"):
        harness.create(name, spec(engineStore={"claimName": "shared"}))
    await harness.settle()
    assert len(harness.world.builds) == 1
    assert len(harness.api.all(JOB)) == 1
    assert key(harness, "anna") == key(harness, "berta")
    for name in ("anna", "berta"):
        assert harness.condition(name, "Ready")["status"] == "True"


async def test_the_second_goes_on_when_the_builder_is_deleted() -> None:
    harness = Harness()
    harness.claim("checkpoints")
    harness.claim("shared")
    harness.world.stuck.add("build")
    harness.create("berta", spec(engineStore={"claimName": "shared"}))
    await harness.settle()
    harness.create("anna", spec(engineStore={"claimName": "shared"}))
    await harness.settle()
    assert harness.condition("berta", "EngineBuilt")["reason"] == "WaitingForGpu"
    assert harness.condition("anna", "EngineBuilt")["reason"] == "WaitingForGpu"
    harness.delete("berta")
    harness.world.stuck.clear()
    await harness.settle()
    assert harness.api.find(RESOURCE, NAMESPACE, "berta") is None
    assert harness.condition("anna", "Ready")["status"] == "True"
    assert child_job(harness)["metadata"]["ownerReferences"][0]["name"] == "anna"


async def test_an_engine_in_the_store_is_not_built_again() -> None:
    harness = Harness()
    harness.claim("checkpoints")
    harness.claim("shared")
    store = harness.api.find(CLAIM, NAMESPACE, "shared")
    assert store is not None
    harness.world.engines.add((store["metadata"]["uid"], harness_key()))
    harness.create("neva", spec(engineStore={"claimName": "shared"}))
    await harness.settle()
    assert harness.condition("neva", "EngineBuilt")["reason"] == "EngineFound"
    assert not harness.world.builds


async def test_an_engine_named_by_key_is_served_or_missed() -> None:
    harness = Harness()
    harness.claim("shared")
    store = harness.api.find(CLAIM, NAMESPACE, "shared")
    assert store is not None
    harness.create("neva", spec(engineStore={"claimName": "shared"}, engine={"key": "0123456789abcdef"}))
    await harness.settle()
    assert harness.condition("neva", "Ready")["reason"] == "EngineNotFound"
    harness.world.engines.add((store["metadata"]["uid"], "0123456789abcdef"))
    await harness.wait(61)
    assert harness.condition("neva", "Ready")["status"] == "True"
    assert not harness.world.builds


async def test_gpus_are_asked_for_only_after_the_inspection() -> None:
    harness = Harness()
    harness.claim("checkpoints")
    harness.create("neva", spec(numGpus=1, engine={"backend": "torch"}))
    await harness.settle()
    jobs = {job["metadata"]["labels"][labels.LABEL_COMPONENT]: job for job in harness.api.all(JOB)}
    limits = {name: job["spec"]["template"]["spec"]["containers"][0]["resources"] for name, job in jobs.items()}
    assert limits["build"]["limits"] == {"nvidia.com/gpu": "1"}
    assert "limits" not in limits["inspect"]
    assert harness.condition("neva", "Ready")["status"] == "True"
    assert child(harness, DEPLOYMENT)["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


async def test_scarce_gpus_are_told_in_the_schedulers_words() -> None:
    harness = Harness()
    harness.claim("checkpoints")
    harness.world.stuck.add("serving")
    harness.create("neva", spec(numGpus=1, engine={"backend": "torch"}))
    await harness.settle()
    condition = harness.condition("neva", "Ready")
    assert condition["reason"] == "WaitingForGpu"
    assert "Insufficient nvidia.com/gpu" in condition["message"]
    assert harness.condition("neva", "EngineBuilt")["status"] == "True"


async def test_suspending_stops_pods_and_builds_and_keeps_the_engine(ready: Harness) -> None:
    ready.edit("neva", {"suspend": True})
    await ready.settle()
    assert ready.status("neva")["phase"] == "Suspended"
    assert not [pod for pod in ready.api.all(POD) if pod["metadata"]["labels"][labels.LABEL_COMPONENT] == "serving"]
    ready.edit("neva", {"limits": {"maxInputLen": 8192}})
    await ready.settle()
    assert len(ready.world.builds) == 1
    ready.edit("neva", {"suspend": False, "limits": None})
    await ready.settle()
    assert ready.condition("neva", "Ready")["status"] == "True"
    assert len(ready.world.builds) == 1


async def test_suspending_ends_a_build_at_work() -> None:
    harness = Harness()
    harness.claim("checkpoints")
    harness.world.stuck.add("build")
    harness.create("neva", spec())
    await harness.settle()
    assert len(harness.api.all(JOB)) == 1
    harness.edit("neva", {"suspend": True})
    await harness.settle()
    assert not harness.api.all(JOB)
    harness.world.stuck.clear()
    harness.edit("neva", {"suspend": False})
    await harness.settle()
    assert harness.condition("neva", "Ready")["status"] == "True"


async def test_hand_edits_are_put_right(ready: Harness) -> None:
    wanted = child(ready, DEPLOYMENT)["spec"]
    image = {"name": "server", "image": "evil:1"}
    containers = [wanted["template"]["spec"]["containers"][0] | image]
    ready.api.edit(DEPLOYMENT, NAMESPACE, "neva", {"spec": {"template": {"spec": {"containers": containers}}}})
    ready.api.edit(SERVICE, NAMESPACE, "neva", {"spec": {"ports": [{"name": "http", "port": 1, "protocol": "TCP"}]}})
    ready.api.edit(SERVICE_ACCOUNT, NAMESPACE, "neva", {"metadata": {"labels": {labels.LABEL_MANAGED_BY: None}}})
    await ready.settle()
    assert child(ready, DEPLOYMENT)["spec"] == wanted
    assert [port["port"] for port in child(ready, SERVICE)["spec"]["ports"]] == [8000, 8001, 8002, 9000]
    assert child(ready, SERVICE_ACCOUNT)["metadata"]["labels"][labels.LABEL_MANAGED_BY] == labels.MANAGED_BY


@pytest.mark.parametrize("kind", [SERVICE, SERVICE_ACCOUNT, DEPLOYMENT], ids=lambda kind: kind.name)
async def test_a_deleted_child_comes_back(ready: Harness, kind: Kind) -> None:
    ready.api.delete(kind, NAMESPACE, "neva")
    await ready.settle()
    assert child(ready, kind)
    assert ready.condition("neva", "Ready")["status"] == "True"
    assert len(ready.world.builds) == 1


async def test_a_store_made_anew_is_known_to_be_empty(ready: Harness) -> None:
    ready.api.delete(CLAIM, NAMESPACE, "neva-engines")
    await ready.settle()
    assert len(ready.world.builds) == 2
    assert ready.condition("neva", "Ready")["status"] == "True"


@pytest.mark.parametrize("kind", [SERVICE, SERVICE_ACCOUNT, DEPLOYMENT], ids=lambda kind: kind.name)
async def test_somebody_elses_object_is_left_alone(kind: Kind) -> None:
    harness = Harness()
    harness.claim("checkpoints")
    theirs = harness.api.add(kind, {"metadata": {"name": "neva", "namespace": NAMESPACE}, "spec": {"mine": True}})
    harness.create("neva", spec())
    await harness.settle()
    assert child(harness, kind) == theirs
    condition = harness.condition("neva", "Ready")
    assert condition["reason"] == "Conflict"
    assert f"{kind.name} neva" in condition["message"]
    harness.api.delete(kind, NAMESPACE, "neva")
    await harness.wait(16)
    assert harness.condition("neva", "Ready")["status"] == "True"


@pytest.mark.parametrize(
    ("plural", "duty"),
    [("persistentvolumeclaims", "StorageReady"), ("jobs", "EngineBuilt"), ("deployments", "Deployed")],
)
async def test_a_refused_child_is_told_and_tried_again(plural: str, duty: str) -> None:
    harness = Harness()
    harness.claim("checkpoints")
    harness.api.quota.add(plural)
    harness.create("neva", spec())
    await harness.settle()
    assert harness.condition("neva", duty)["reason"] == "QuotaExceeded"
    assert "exceeded quota" in harness.condition("neva", "Ready")["message"]
    harness.api.quota.clear()
    await harness.wait(16)
    assert harness.condition("neva", "Ready")["status"] == "True"


async def test_a_job_that_gets_no_pod_is_told_in_the_words_of_the_quota() -> None:
    harness = Harness()
    harness.claim("checkpoints")
    harness.api.quota.add("pods")
    harness.create("neva", spec())
    await harness.settle()
    assert harness.condition("neva", "Ready")["reason"] == "BuildingEngine"
    await harness.wait(5)
    condition = harness.condition("neva", "Ready")
    assert condition["reason"] == "QuotaExceeded"
    assert "exceeded quota: pods" in condition["message"]
    harness.api.quota.clear()
    await harness.wait(5)
    assert harness.condition("neva", "Ready")["status"] == "True"


async def test_servers_that_fail_are_told_with_their_last_words(ready: Harness) -> None:
    old = key(ready)
    ready.edit("neva", {"limits": {"maxInputLen": 8192}})
    ready.world.broken.add(Spec.model_validate(child(ready, RESOURCE)["spec"]).engine_key())
    await ready.settle()
    condition = ready.condition("neva", "Ready")
    assert condition["reason"] == "ServerFailed"
    assert "no room for the weights" in condition["message"]
    assert f"engine {old} still serves" in condition["message"]
    assert ready.world.served[-1] == {old}
    ready.edit("neva", {"limits": None})
    await ready.settle()
    assert ready.condition("neva", "Ready")["status"] == "True"
    assert ready.world.served[-1] == {old}


async def test_a_pending_build_takes_new_settings_and_a_running_one_goes_on() -> None:
    harness = Harness()
    harness.claim("checkpoints")
    harness.world.stuck.add("build")
    harness.create("neva", spec())
    await harness.settle()
    first = child_job(harness)["metadata"]["uid"]
    harness.edit("neva", {"build": {"image": "other:2"}})
    await harness.settle()
    second = child_job(harness)
    assert second["metadata"]["uid"] != first
    assert second["spec"]["template"]["spec"]["containers"][0]["image"] == "other:2"
    running = {"phase": "Running", "containerStatuses": [{"name": "builder", "state": {"running": {}}}]}
    harness.api.edit(POD, NAMESPACE, harness.api.all(POD)[0]["metadata"]["name"], {"status": running})
    harness.edit("neva", {"build": {"image": "other:3"}})
    await harness.settle()
    assert child_job(harness)["metadata"]["uid"] == second["metadata"]["uid"]


async def test_every_verb_that_is_granted_is_used_and_no_other(ready: Harness) -> None:
    """Watching is kopf's, and creating by apply is authorised as creating, too."""
    for change in ({"limits": {"maxInputLen": 8192}}, {"deletionPolicy": "Retain"}):
        ready.edit("neva", change)
        await ready.settle()
    ready.delete("neva")
    await ready.settle()
    used = {(plural, verb) for verb, plural, _subresource in ready.api.calls}
    granted = {(kind.plural, verb) for kind in KINDS for verb in kind.verbs - {"watch"}}
    by_apply = {(kind.plural, "create") for kind in (CLAIM, SERVICE_ACCOUNT, SERVICE, DEPLOYMENT)}
    in_trouble = {("jobs", "get"), ("events", "list")}
    assert used <= granted
    assert granted - used <= by_apply | in_trouble | {(kind.plural, "list") for kind in KINDS}


def harness_key() -> str:
    """Give the engine key of `spec()`."""
    return Spec.model_validate(spec()).engine_key()


def child_job(harness: Harness) -> Json:
    """Give the one Job."""
    (job,) = harness.api.all(JOB)
    return job
