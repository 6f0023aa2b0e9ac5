"""What tests of the whole product on a real cluster share: the operator from its chart, a namespace, the checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multimodal_api import labels
from support.platform import apply, attempt, eventually, kubectl, read, succeeds

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "multimodal-operator"
CRD = ROOT / "crds" / f"{labels.PLURAL}.{labels.GROUP}.yaml"
CHECKPOINT = ROOT / "examples" / "tiny" / "neva"
RELEASE = "multimodal-operator"
CLAIM = "checkpoints"
BUILD_SECONDS = 240
"""A build of the tiny model takes 15 s where nothing else runs; tests share the machine with much else."""

API_VERSIONS = {"deployments": "apps/v1", "jobs": "batch/v1"}
"""Of our objects that are not of the first group."""

SMALL = {"resources": {"requests": {"cpu": "50m", "memory": "512Mi"}}}
"""Pods of many tests fit on a node of two cores, those that end beside those that start."""

SPEC: dict[str, Any] = {
    "numGpus": 0,
    "dtype": "float32",
    "model": {"type": "neva", "visualCheckpoint": {"pvc": {"claimName": CLAIM, "path": "neva.nemo"}}},
    "limits": {"maxInputLen": 256, "maxMultimodalLen": 128, "maxOutputLen": 32, "maxBatchSize": 2},
    "engineStore": {"size": "1Gi"},
    "build": SMALL,
    "serving": SMALL,
}


def published_images() -> dict[str, str]:
    """Give the references that `make images` wrote."""
    cache = Path(os.environ.get("MULTIMODAL_CACHE", Path.home() / ".cache" / "multimodal-operator"))
    found: dict[str, str] = json.loads((cache / "images.json").read_text())["images"]
    return found


def install_operator(namespace: str) -> None:
    """Install an operator that looks after its own namespace only: others in the cluster notice nothing of it."""
    # The definition belongs to all of them.
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    values = {"crds.enabled": "false", "watch.namespaces": f"{{{namespace}}}"}
    values |= {f"images.{name}": image for name, image in published_images().items()}
    command = ["helm", "upgrade", RELEASE, str(CHART), "--install", "--namespace", namespace]
    command += [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    done = subprocess.run(
        [*command, "--wait", "--timeout", "120s"], capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == 0, done.stderr


def uninstall_operator(namespace: str) -> None:
    """Take it away again."""
    subprocess.run(["helm", "uninstall", RELEASE, "--namespace", namespace], check=False, timeout=120)


def make_namespace(name: str) -> None:
    """Make a namespace that admits restricted pods only, with a claim that holds the tiny checkpoint."""
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": enforced}})
    apply(claim(name, CLAIM))
    load_files(name, CHECKPOINT, ["neva.nemo", "clip"])


def load_files(namespace: str, root: Path, files: list[str]) -> None:
    """Copy files, named from a folder, onto the claim of checkpoints."""
    apply(_loader(namespace))
    kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/loader", "--timeout=120s", seconds=130)
    _send(namespace, "loader", "/data", root, files)
    kubectl("delete", "pod", "-n", namespace, "loader", "--grace-period=1", "--timeout=60s")


def _send(namespace: str, pod: str, folder: str, root: Path, files: list[str]) -> None:
    archive = subprocess.run(
        ["tar", "-C", str(root), "-cf", "-", *files], capture_output=True, check=True, timeout=60
    ).stdout
    unpack = ["tar", "-C", folder, "--no-same-owner", "-xf", "-"]
    subprocess.run(
        ["kubectl", "exec", "-n", namespace, "-i", pod, "--", *unpack], input=archive, check=True, timeout=60
    )


def claim(namespace: str, name: str) -> dict[str, Any]:
    """Give a small claim."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}


def start_client(namespace: str) -> None:
    """Start the pod `client`, which has the client libraries of the server's image and can run modules of `support`."""
    apply(restricted_pod(namespace, "client", ["sleep", "infinity"], image=published_images()["server"]))
    kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/client", "--timeout=120s", seconds=130)
    send_programs(namespace)


def send_programs(namespace: str) -> None:
    """Copy what runs in the pod `client` into it."""
    programs = [f"support/{name}.py" for name in ("__init__", "asking", "load")]
    _send(namespace, "client", "/tmp", ROOT / "tests", programs)


def in_client(namespace: str, module: str) -> list[str]:
    """Give the command that runs a module of `support` in the pod `client`, with its standard input."""
    return ["kubectl", "exec", "-n", namespace, "-i", "client", "--", "/opt/front/bin/python", "-m", module]


def restricted_pod(namespace: str, name: str, command: list[str], **container: Any) -> dict[str, Any]:
    """Give a pod of the operator's image that the restricted standard admits."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    main = {"name": "main", "image": published_images()["operator"], "command": command, "securityContext": security}
    user = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [main | container], "securityContext": user, "terminationGracePeriodSeconds": 1}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**spec, "restartPolicy": "Never"},
    }


def _loader(namespace: str) -> dict[str, Any]:
    pod = restricted_pod(
        namespace, "loader", ["sleep", "600"], volumeMounts=[{"name": "checkpoints", "mountPath": "/data"}]
    )
    pod["spec"]["volumes"] = [{"name": "checkpoints", "persistentVolumeClaim": {"claimName": CLAIM}}]
    return pod


@dataclass(frozen=True)
class Resource:
    """One `MultimodalDeployment` of a test."""

    namespace: str
    name: str

    def create(self, **changes: Any) -> Resource:
        """Create it on the CPU, with changes at the top of its spec."""
        meta = {"name": self.name, "namespace": self.namespace}
        apply({"apiVersion": labels.API_VERSION, "kind": labels.KIND, "metadata": meta, "spec": {**SPEC, **changes}})
        return self

    def edit(self, **changes: Any) -> None:
        """Merge changes into its spec."""
        patch = json.dumps({"spec": changes})
        kubectl("patch", "-n", self.namespace, labels.SHORT_NAME, self.name, "--type=merge", "-p", patch)

    def delete(self, *, wait: bool = True) -> None:
        """Delete it."""
        arguments = ("delete", "-n", self.namespace, labels.SHORT_NAME, self.name, "--ignore-not-found")
        kubectl(*arguments, f"--wait={str(wait).lower()}", "--timeout=120s", seconds=130)

    def read(self) -> dict[str, Any]:
        """Give it as stored."""
        return read(labels.API_VERSION, labels.PLURAL, namespace=self.namespace, name=self.name)

    @property
    def status(self) -> dict[str, Any]:
        """Its status, empty at first."""
        found: dict[str, Any] = self.read().get("status", {})
        return found

    def condition(self, duty: str = "Ready") -> dict[str, Any]:
        """One condition, empty at first."""
        return _condition(self.status, duty)

    def until(self, duty: str, *, reason: str, status: str = "False", seconds: float = BUILD_SECONDS) -> dict[str, Any]:
        """Wait for a condition with a reason; fails with what is there instead."""
        found: dict[str, Any] = {}

        def holds() -> bool:
            now = self.read()
            known = now.get("status", {})
            found.clear()
            found.update(_condition(known, duty))
            is_current = known.get("observedGeneration") == now["metadata"]["generation"]
            return is_current and (found.get("status"), found.get("reason")) == (status, reason)

        try:
            eventually(holds, f"{duty} is {status} because of {reason}", seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}") from error
        return found

    def until_ready(self, seconds: float = BUILD_SECONDS) -> dict[str, Any]:
        """Wait until all is well."""
        return self.until("Ready", reason="AllIsWell", status="True", seconds=seconds)

    def children(self, resource: str) -> list[dict[str, Any]]:
        """List its objects of a kind, by plural name."""
        selector = f"{labels.LABEL_MANAGED_BY}={labels.MANAGED_BY},{labels.LABEL_INSTANCE}={self.name}"
        version = API_VERSIONS.get(resource, "v1")
        items: list[dict[str, Any]] = read(version, resource, namespace=self.namespace, label_selector=selector)[
            "items"
        ]
        return items

    def pods(self, component: str) -> list[str]:
        """List the uids of its pods of a component that are not on their way out."""
        pods = [pod["metadata"] for pod in self.children("pods") if "deletionTimestamp" not in pod["metadata"]]
        return [meta["uid"] for meta in pods if meta["labels"][labels.LABEL_COMPONENT] == component]

    def answers(self) -> bool:
        """Triton says through the Service that the model is ready."""
        path = f"/api/v1/namespaces/{self.namespace}/services/{self.name}:http/proxy/v2/models/{self.name}/ready"
        return succeeds(path)


def _condition(status: dict[str, Any], duty: str) -> dict[str, Any]:
    return next((item for item in status.get("conditions", ()) if item["type"] == duty), {})


def dump(namespace: str) -> str:
    """Say everything about a namespace and the operator that a failed test may want to know."""
    commands = [
        ("get", "-n", namespace, labels.SHORT_NAME, "-o", "yaml"),
        ("get", "-n", namespace, "all,pvc", "-o", "wide"),
        ("get", "-n", namespace, "events.events.k8s.io", "--sort-by=.metadata.creationTimestamp"),
        ("logs", "-n", namespace, f"deploy/{RELEASE}", "--tail=60"),
    ]
    pods = attempt("get", "-n", namespace, "pods", "-o", "name").stdout.split()
    commands += [("logs", "-n", namespace, pod, "--tail=30") for pod in pods]
    return "\n".join(f"--- kubectl {' '.join(command)}\n{attempt(*command).stdout}" for command in commands)
