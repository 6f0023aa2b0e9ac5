"""The operator, and what it waits for, end at bad moments; it goes on from what it finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from support.platform import eventually, get, kubectl, read
from support.product import RELEASE, Resource

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

Make = Callable[[str], Resource]


def kill_operator(namespace: str) -> None:
    """End the operator at once, as the loss of its node does."""
    selector = "app.kubernetes.io/component=operator"
    kubectl("delete", "pod", "-n", namespace, "-l", selector, "--grace-period=0", "--force")


def scale_operator(namespace: str, replicas: int) -> None:
    kubectl("scale", "-n", namespace, f"deploy/{RELEASE}", f"--replicas={replicas}")
    which = {"namespace": namespace, "name": RELEASE}
    eventually(
        lambda: read("apps/v1", "deployments", **which)["status"].get("readyReplicas", 0) == replicas,
        f"{replicas} operators",
        seconds=90,
    )


@pytest.fixture(autouse=True)
def _operator_runs_afterwards(namespace: str) -> Iterator[None]:
    yield
    scale_operator(namespace, 1)


def test_operator_and_builder_killed_during_the_build(resource: Make, namespace: str) -> None:
    neva = resource("survivor").create()
    eventually(
        lambda: any(pod["status"]["phase"] == "Running" for pod in neva.children("pods")), "a build runs", seconds=60
    )
    kill_operator(namespace)
    (pod,) = neva.children("pods")
    kubectl("delete", "pod", "-n", namespace, pod["metadata"]["name"], "--grace-period=0", "--force")
    neva.until_ready()
    assert len(neva.children("jobs")) == 1
    assert neva.answers()


def test_operator_killed_during_the_rollout(resource: Make, namespace: str, store: dict[str, str]) -> None:
    neva = resource("roller").create(engineStore=store)
    neva.until_ready()
    (old,) = neva.pods("serving")
    neva.edit(triton={"modelVersion": 2})
    eventually(lambda: len(neva.pods("serving")) == 2, "the rollout begins", seconds=60)
    kill_operator(namespace)
    neva.until_ready()
    assert neva.answers()
    assert old not in neva.pods("serving")


def test_the_world_changes_while_the_operator_is_away(resource: Make, namespace: str) -> None:
    neva = resource("lonely").create()
    eventually(lambda: bool(neva.pods("build")), "a build is made", seconds=60)
    scale_operator(namespace, 0)
    kubectl("delete", "svc", "-n", namespace, "lonely")
    kubectl("wait", "-n", namespace, "job", "--for=condition=Complete", "--all", "--timeout=240s", seconds=250)
    neva.edit(serving={"replicas": 2}, triton={"httpPort": 9500})
    scale_operator(namespace, 1)
    neva.until_ready()
    eventually(neva.answers, "the Service is back")
    assert [port["port"] for port in get("-n", namespace, "svc", "lonely")["spec"]["ports"]] == [9500, 8001, 8002, 9000]
    assert neva.status["readyReplicas"] == 2

    scale_operator(namespace, 0)
    neva.delete(wait=False)
    time.sleep(1)
    assert neva.read()["metadata"]["deletionTimestamp"]
    scale_operator(namespace, 1)
    neva.delete()
    assert not neva.children("pods")


def test_an_upgrade_of_the_operator_restarts_no_pods(resource: Make, namespace: str, store: dict[str, str]) -> None:
    neva = resource("steady").create(engineStore=store)
    neva.until_ready()
    before = neva.pods("serving")
    versions = get("-n", namespace, "deploy", "steady")["metadata"]["resourceVersion"]
    kubectl("rollout", "restart", "-n", namespace, f"deploy/{RELEASE}")
    kubectl("rollout", "status", "-n", namespace, f"deploy/{RELEASE}", "--timeout=90s", seconds=100)
    time.sleep(3)
    assert neva.pods("serving") == before
    assert get("-n", namespace, "deploy", "steady")["metadata"]["resourceVersion"] == versions
