"""What stands in the way is named with a remedy, and the way goes on when it is gone."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from multimodal_api import labels
from multimodal_api.resource import Spec
from multimodal_operator.want import store_digest
from support.platform import apply, attempt, eventually, get, kubectl
from support.product import CLAIM, SPEC, Resource, claim, restricted_pod

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

Make = Callable[[str], Resource]


def test_a_missing_claim_is_waited_for(resource: Make, namespace: str) -> None:
    neva = resource("storeless").create(engineStore={"claimName": "tomorrow"})
    told = neva.until("Ready", reason="ClaimNotFound", seconds=30)
    assert "spec.engineStore.claimName" in told["message"]
    assert "'tomorrow'" in told["message"]
    assert not neva.children("jobs")
    apply(claim(namespace, "tomorrow"))
    neva.until("EngineBuilt", reason="BuildingEngine", seconds=60)


def test_a_missing_secret_is_waited_for(resource: Make, namespace: str) -> None:
    model = {**SPEC["model"], "hfTokenSecret": {"name": "token", "key": "hf"}}
    neva = resource("secretless").create(model=model)
    told = neva.until("Ready", reason="SecretNotFound", seconds=60)
    assert '"token" not found' in told["message"]
    kubectl("create", "secret", "generic", "-n", namespace, "token", "--from-literal=hf=x")
    neva.until("EngineBuilt", reason="BuildingEngine", seconds=90)


def test_an_image_that_is_not_there_is_replaced_by_an_edit(resource: Make) -> None:
    neva = resource("imageless").create(build={"image": "127.0.0.1:5000/no-such-image:1"})
    told = neva.until("Ready", reason="ImagePullFailed", seconds=60)
    assert "no-such-image" in told["message"]
    neva.edit(build={"image": None})
    neva.until("EngineBuilt", reason="BuildingEngine", seconds=60)


def test_scarce_gpus_are_told_in_the_schedulers_words(resource: Make, namespace: str) -> None:
    capacity = get("nodes")["items"][0]["status"]["allocatable"]["nvidia.com/gpu"]
    taken = restricted_pod(
        namespace, "gpu-holder", ["sleep", "600"], resources={"limits": {"nvidia.com/gpu": str(capacity)}}
    )
    apply(taken)
    kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/gpu-holder", "--timeout=60s")
    neva = resource("scarce").create(numGpus=1, engine={"backend": "torch"})
    told = neva.until("Ready", reason="WaitingForGpu")
    assert "Insufficient nvidia.com/gpu" in told["message"]
    assert neva.status["phase"] == "Building"
    kubectl("delete", "pod", "-n", namespace, "gpu-holder", "--grace-period=1")
    neva.until("EngineBuilt", reason="EnginePublished", status="True")
    # The scheduler counts GPUs that this machine does not have: the server finds none and says so.
    told = neva.until("Deployed", reason="DeviceMissing")
    assert "GPU" in told["message"]


def test_a_name_that_is_taken_is_left_alone(resource: Make, namespace: str) -> None:
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "taken", "namespace": namespace}}
    apply(theirs | {"spec": {"ports": [{"port": 80}], "selector": {"app": "theirs"}}})
    neva = resource("taken").create()
    told = neva.until("Ready", reason="Conflict", seconds=60)
    assert "Service taken" in told["message"]
    assert get("-n", namespace, "svc", "taken")["spec"]["selector"] == {"app": "theirs"}
    kubectl("delete", "svc", "-n", namespace, "taken")
    eventually(lambda: bool(neva.children("services")), "our Service is there", seconds=60)


def test_a_job_that_is_somebody_elses_is_left_alone(resource: Make, namespace: str) -> None:
    key = Spec.model_validate(SPEC).engine_key()
    name = f"mmd-build-{key}-{store_digest('jobbed-engines')}"
    pod = restricted_pod(namespace, name, ["sleep", "1"])["spec"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace}}
    apply(job | {"spec": {"suspend": True, "template": {"spec": pod}}})
    neva = resource("jobbed").create()
    told = neva.until("EngineBuilt", reason="Conflict", seconds=60)
    assert name in told["message"]
    kubectl("delete", "job", "-n", namespace, name)
    neva.until("EngineBuilt", reason="BuildingEngine", seconds=60)


def test_a_quota_is_told(resource: Make, namespace: str) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few", "namespace": namespace}}
    apply(quota | {"spec": {"hard": {"count/services": "0"}}})
    try:
        neva = resource("many").create()
        told = neva.until("Ready", reason="QuotaExceeded", seconds=60)
        assert "exceeded quota: few" in told["message"]
    finally:
        kubectl("delete", "quota", "-n", namespace, "few")
    eventually(lambda: bool(neva.children("services")), "the Service is made", seconds=60)


def test_a_store_cannot_become_another(resource: Make) -> None:
    neva = resource("modes").create(suspend=True)
    neva.until("Ready", reason="Suspended", seconds=30)
    neva.edit(engineStore={"accessModes": ["ReadWriteMany"]})
    told = neva.until("Ready", reason="Invalid", seconds=30)
    assert "spec.engineStore.accessModes" in told["message"]
    neva.edit(engineStore={"accessModes": None})
    neva.until("Ready", reason="Suspended", seconds=30)


def test_people_can_read_it(resource: Make, namespace: str) -> None:
    neva = resource("readable").create(
        model={**SPEC["model"], "visualCheckpoint": {"pvc": {"claimName": "no", "path": "x"}}}
    )
    neva.until("Ready", reason="ClaimNotFound", seconds=30)
    table = kubectl("get", labels.SHORT_NAME, "-n", namespace, "readable")
    assert "Failed" in table
    described = kubectl("describe", labels.SHORT_NAME, "-n", namespace, "readable")
    assert "ClaimNotFound" in described
    assert "Warning" in described.rpartition("Events:")[2]
    assert json.loads(attempt("get", labels.SHORT_NAME, "-n", namespace, "readable", "-o", "json").stdout)
    assert CLAIM not in described
