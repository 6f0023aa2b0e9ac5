"""The cluster is a real one: what the product leans on works before the product is asked to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multimodal_cluster.images import compose
from support.platform import apply, attempt, eventually, get, kubectl, push

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
PROBE = Path(__file__).parent / "probe"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def cluster(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cluster"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.fixture(name="image", scope="module")
def _image(tmp_path_factory: pytest.TempPathFactory) -> str:
    program = tmp_path_factory.mktemp("probe") / "probe"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    command = ["go", "build", "-trimpath", "-buildvcs=false", "-o", str(program), "."]
    subprocess.run(command, cwd=PROBE, env=environment, check=True, timeout=200)
    return push(compose(program, "1000:1000"), "tests/probe", "latest")


@pytest.fixture(name="namespace", scope="module")
def _namespace() -> Iterator[str]:
    """Give a namespace in which only pods of the restricted standard start."""
    name = f"platform-{os.getpid()}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(name="server", scope="module")
def _server(namespace: str, image: str) -> str:
    """Give a Deployment of two pods behind a Service, both of the same name."""
    labels = {"app": "server"}
    container = pod(image, "serve", ":8000")["containers"][0] | {
        "ports": [{"containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1},
    }
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    metadata = {"name": "server", "namespace": namespace}
    apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8000}]},
        },
    )
    kubectl("-n", namespace, "rollout", "status", "deployment/server", "--timeout=80s")
    return "server"


def pod(image: str, *words: str, limits: dict[str, str] | None = None) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "probe",
        "image": image,
        "imagePullPolicy": "Always",
        "args": list(words),
        "securityContext": RESTRICTED,
    }
    if limits:
        container["resources"] = {"limits": limits}
    return {"restartPolicy": "Never", "containers": [container]}


def run(namespace: str, name: str, spec: dict[str, Any]) -> str:
    """Run a pod to its end and return what it printed."""
    apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
    phases = ("Succeeded", "Failed")
    eventually(
        lambda: get("-n", namespace, "pod", name)["status"].get("phase") in phases, f"pod {name} ended", seconds=90
    )
    printed = kubectl("-n", namespace, "logs", name)
    assert get("-n", namespace, "pod", name)["status"]["phase"] == "Succeeded", printed
    return printed


def pod_names(namespace: str) -> set[str]:
    listed = get("-n", namespace, "pods", "-l", "app=server")["items"]
    return {each["metadata"]["name"] for each in listed}


def test_every_part_is_ready() -> None:
    status = cluster("status")
    assert status.returncode == 0, status.stdout


def test_up_again_changes_nothing() -> None:
    before = get("nodes")["items"]
    again = cluster("up")
    assert again.returncode == 0, again.stderr
    assert "start " not in again.stdout
    after = get("nodes")["items"]
    assert [each["metadata"]["uid"] for each in after] == [each["metadata"]["uid"] for each in before]


def test_a_service_answers_by_its_name_in_another_pod(namespace: str, image: str, server: str) -> None:
    answer = run(namespace, "asker", pod(image, "get", f"http://{server}"))
    assert answer in pod_names(namespace)


@pytest.mark.parametrize("suffix", ["", ".{namespace}", ".{namespace}.svc.cluster.local"])
def test_every_form_of_a_name_leads_to_the_service(namespace: str, image: str, server: str, suffix: str) -> None:
    name = server + suffix.format(namespace=namespace)
    looked_up = run(namespace, f"resolver-{len(suffix)}", pod(image, "lookup", name))
    assert looked_up.split() == [get("-n", namespace, "service", server)["spec"]["clusterIP"]]


def test_a_pod_reaches_itself_through_its_service(namespace: str, server: str) -> None:
    """Kubernetes promises it, and a network without hairpin mode breaks it for one request in n."""
    for name in sorted(pod_names(namespace)):
        ask = ("-n", namespace, "exec", name, "--", "/probe", "get", f"http://{server}")
        assert any(kubectl(*ask) == name for _ in range(40))


def test_a_pod_outside_the_standard_is_refused(namespace: str, image: str) -> None:
    spec = pod(image, "read", "/etc/hostname")
    spec["containers"][0]["securityContext"] = {"privileged": True}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "rogue", "namespace": namespace}, "spec": spec}
    done = attempt("create", "-f", "-", stdin=json.dumps(manifest))
    assert done.returncode != 0
    assert 'violates PodSecurity "restricted:latest"' in done.stderr


def test_what_one_pod_writes_to_a_claim_another_reads(namespace: str, image: str) -> None:
    """No storage class is named: there is one default."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "notes", "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}},
    }
    apply(claim)
    volume = {"volumes": [{"name": "notes", "persistentVolumeClaim": {"claimName": "notes"}}]}
    for name, words in (("writer", ("write", "/notes/a", "kept")), ("reader", ("read", "/notes/a"))):
        spec = pod(image, *words) | volume
        spec["containers"][0]["volumeMounts"] = [{"name": "notes", "mountPath": "/notes"}]
        printed = run(namespace, name, spec)
    assert printed == "kept"
    assert get("-n", namespace, "pvc", "notes")["status"]["phase"] == "Bound"


def gpus(field: str = "allocatable") -> int:
    (node,) = get("nodes")["items"]
    return int(node["status"][field].get("nvidia.com/gpu", 0))


def test_a_job_gets_a_gpu(namespace: str, image: str) -> None:
    spec = pod(image, "read", "/etc/hostname", limits={"nvidia.com/gpu": "1"})
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "gpu", "namespace": namespace},
        "spec": {"template": {"spec": spec}},
    }
    apply(job)
    # Another test may hold all GPUs for a while.
    wait = ("wait", "--for=condition=Complete", "--timeout=180s", "job/gpu")
    kubectl("-n", namespace, *wait, seconds=190)


def test_more_gpus_than_there_are_wait_with_a_reason(namespace: str, image: str) -> None:
    spec = pod(image, "read", "/etc/hostname", limits={"nvidia.com/gpu": str(gpus("capacity") + 1)})
    apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "greedy", "namespace": namespace}, "spec": spec})

    def reason() -> str:
        conditions = get("-n", namespace, "pod", "greedy")["status"].get("conditions", [])
        return " ".join(each.get("message", "") for each in conditions if each["type"] == "PodScheduled")

    eventually(lambda: "Insufficient nvidia.com/gpu" in reason(), "the scheduler says which resource is scarce")
    kubectl("-n", namespace, "delete", "pod", "greedy", "--wait=false")


def test_a_restarted_kubelet_keeps_the_gpus_and_finds_its_pods(namespace: str, server: str) -> None:
    count = gpus()
    assert count > 0
    restarted = cluster("restart", "kubelet")
    assert restarted.returncode == 0, restarted.stderr
    eventually(lambda: gpus() == count and gpus("capacity") == count, f"{count} GPUs after the restart")
    # It answers before it has read from the API server which pods are its own.
    logs = ("-n", namespace, "logs", f"deploy/{server}")
    eventually(lambda: attempt(*logs).returncode == 0, "the kubelet knows its pods")


def test_a_persons_commands_reach_into_pods(namespace: str, server: str) -> None:
    name = min(pod_names(namespace))
    assert kubectl("-n", namespace, "logs", name) == f"serving as {name}\n"
    assert kubectl("-n", namespace, "exec", name, "--", "/probe", "read", "/etc/hostname") == f"{name}\n"
    assert server


def test_a_port_is_forwarded(namespace: str, server: str) -> None:
    command = ["kubectl", "-n", namespace, "port-forward", f"service/{server}", ":80", "--address=127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forwarder:
        try:
            assert forwarder.stdout is not None
            address = forwarder.stdout.readline().split()[2]  # Forwarding from 127.0.0.1:… -> …
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://{address}", timeout=20) as answer:
                assert answer.read().decode() in pod_names(namespace)
        finally:
            forwarder.terminate()


def test_the_audit_log_says_who_was_refused_what(namespace: str) -> None:
    user = f"system:serviceaccount:{namespace}:default"
    done = attempt("-n", namespace, "get", "secrets", f"--as={user}")
    assert done.returncode != 0
    entries = [json.loads(line) for line in Path(os.environ["MULTIMODAL_AUDIT_LOG"]).read_text().splitlines()]
    refused = [
        (each["verb"], each["objectRef"]["resource"], each["objectRef"]["namespace"])
        for each in entries
        # A request that nobody vouches for has an empty user.
        if each.get("impersonatedUser", each["user"]).get("username") == user
        and each["annotations"]["authorization.k8s.io/decision"] == "forbid"
    ]
    assert ("list", "secrets", namespace) in refused
