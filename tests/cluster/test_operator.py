"""The life of resources on a real cluster: create, edit, delete, share, and what people are told on the way."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from multimodal_api import labels
from support.platform import apply, attempt, eventually, get, kubectl, read
from support.product import CLAIM, Resource, claim

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

Make = Callable[[str], Resource]


def versions(namespace: str, name: str) -> dict[str, str]:
    """Give the resource versions of a resource and its children."""
    selector = f"{labels.LABEL_MANAGED_BY}={labels.MANAGED_BY},{labels.LABEL_INSTANCE}={name}"
    found = get("-n", namespace, "pvc,sa,svc,deploy,job", "-l", selector)["items"]
    found.append(get("-n", namespace, labels.SHORT_NAME, name))
    return {f"{obj['kind']}/{obj['metadata']['name']}": obj["metadata"]["resourceVersion"] for obj in found}


def test_from_creation_to_deletion(resource: Make, namespace: str) -> None:
    neva = resource("neva").create()
    neva.until_ready()
    assert neva.answers()
    first = neva.status
    assert first["phase"] == "Ready"
    assert first["servingEngineKey"] == first["engine"]["key"]
    assert first["engine"]["sizeBytes"] > 1_000_000
    assert {condition["status"] for condition in first["conditions"]} == {"True"}
    assert neva.condition("EngineBuilt")["reason"] == "EnginePublished"
    selector = f"regarding.kind={labels.KIND},regarding.name=neva"
    events = get("-n", namespace, "events.events.k8s.io", f"--field-selector={selector}")["items"]
    assert {"BuildingEngine", "EnginePublished", "RolledOut", "AllIsWell"} <= {event["reason"] for event in events}

    # Nothing changes, nothing is written.
    before = versions(namespace, "neva")
    time.sleep(5)
    assert versions(namespace, "neva") == before

    # More pods are no reason to build.
    (built,) = neva.children("jobs")
    neva.edit(serving={"replicas": 2})
    eventually(lambda: neva.status.get("readyReplicas") == 2, "two pods answer", seconds=120)
    assert neva.children("jobs") == [built]
    neva.edit(serving={"replicas": 1})
    neva.until_ready()

    # Other sizes are: the old engine answers until the new one does.
    neva.edit(limits={"maxInputLen": 512})
    failures = []

    def has_moved() -> bool:
        if not neva.answers():
            failures.append(time.monotonic())
        deployment = read("apps/v1", "deployments", namespace=namespace, name="neva")
        if deployment["metadata"]["labels"][labels.LABEL_ENGINE_KEY] != first["engine"]["key"]:
            assert neva.condition("EngineBuilt")["status"] == "True", "pods changed before the engine was built"
        return bool(neva.status["servingEngineKey"] != first["engine"]["key"])

    eventually(has_moved, "the new engine serves", seconds=300)
    neva.until_ready()
    assert not failures
    assert neva.status["engine"]["key"] != first["engine"]["key"]

    # Hand edits of children are put right.
    kubectl("delete", "-n", namespace, "service", "neva")
    eventually(neva.answers, "the Service is back")

    neva.delete()
    for kind in ("deployments", "services", "serviceaccounts", "jobs", "persistentvolumeclaims"):
        eventually(lambda kind=kind: not neva.children(kind), f"no {kind} is left")  # type: ignore[misc]
    assert get("-n", namespace, "pvc", CLAIM)["status"]["phase"] == "Bound"


def test_a_failed_build_is_mended_by_an_edit(resource: Make) -> None:
    typo = {"type": "neva", "visualCheckpoint": {"pvc": {"claimName": CLAIM, "path": "nova.nemo"}}}
    neva = resource("typo").create(model=typo)
    told = neva.until("Ready", reason="CheckpointNotFound")
    assert "nova.nemo" in told["message"]
    assert neva.status["phase"] == "Failed"
    neva.edit(model={"visualCheckpoint": {"pvc": {"path": "neva.nemo"}}})
    neva.until_ready()
    assert len(neva.children("jobs")) == 1


def test_two_resources_share_one_engine_and_a_third_finds_it(resource: Make, namespace: str) -> None:
    apply(claim(namespace, "shared"))
    store = {"claimName": "shared"}
    both = [resource(name).create(engineStore=store) for name in ("anna", "berta")]
    for one in both:
        one.until_ready()
    (key,) = {one.status["engine"]["key"] for one in both}
    jobs = get("-n", namespace, "jobs", "-l", f"{labels.LABEL_ENGINE_KEY}={key}")["items"]
    built = [
        job
        for job in jobs
        if job["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == "shared"
    ]
    assert len(built) == 1
    owner = built[0]["metadata"]["ownerReferences"][0]["name"]

    # The first may go: the second serves on, and one that comes later builds nothing.
    gone, stays = (both[0], both[1]) if owner == "anna" else (both[1], both[0])
    gone.delete()
    assert stays.answers()
    later = resource("clara").create(engineStore=store)
    later.until("EngineBuilt", reason="EngineFound", status="True")
    later.delete(wait=False)

    named = resource("dora").create(engineStore=store, engine={"key": key})
    named.until("EngineBuilt", reason="EngineFound", status="True")
    named.until_ready()
    missed = resource("erna").create(engineStore=store, engine={"key": "0123456789abcdef"})
    assert "0123456789abcdef" in missed.until("Ready", reason="EngineNotFound")["message"]


def test_suspending_stops_pods_and_keeps_the_engine(resource: Make, store: dict[str, str]) -> None:
    neva = resource("sleeper").create(suspend=True, engineStore=store)
    neva.until("Ready", reason="Suspended", seconds=30)
    assert not neva.children("jobs")
    neva.edit(suspend=False)
    neva.until_ready()
    uid = neva.children("jobs")[0]["metadata"]["uid"]
    neva.edit(suspend=True)
    eventually(lambda: not neva.pods("serving"), "no pods")
    neva.edit(suspend=False)
    neva.until_ready()
    assert [job["metadata"]["uid"] for job in neva.children("jobs")] == [uid]


def test_a_retained_store_is_left(resource: Make, namespace: str) -> None:
    neva = resource("keeper").create(deletionPolicy="Retain", suspend=True)
    neva.until("Ready", reason="Suspended", seconds=30)
    neva.delete()
    time.sleep(2)  # time for the garbage collector to err
    assert "deletionTimestamp" not in get("-n", namespace, "pvc", "keeper-engines")["metadata"]
    assert attempt("get", "-n", namespace, "svc", "keeper").returncode != 0
