"""The cluster made by kind, for people with Docker."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from typing import TYPE_CHECKING, Final

from multimodal_cluster import clients, daemons, gpus, registry_container
from multimodal_cluster.addresses import REGISTRY
from multimodal_cluster.api import Api
from multimodal_cluster.commands import quietly, run
from multimodal_cluster.errors import ClusterError
from multimodal_cluster.kubeconfigs import write_json
from multimodal_cluster.locks import locked
from multimodal_cluster.paths import SOURCES
from multimodal_cluster.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress

CLUSTER_NAME: Final = "multimodal"
NODE: Final = f"{CLUSTER_NAME}-control-plane"
# kind's own network of Docker's; kind keeps it.
NETWORK: Final = "kind"
PROJECT: Final = SOURCES.parent
CONFIG: Final = PROJECT / "kind-config.yaml"
# kind's own paths are relative to the folder that it runs in. kind-config.yaml names both, here and in the node.
AUDIT_LOG: Final = PROJECT / "out" / "kind" / "audit.log"
NODE_AUDIT_LOG: Final = "/var/log/kubernetes/audit.log"
# What kind brings along, and does not wait for: namespace, workload.
SYSTEM: Final = (
    ("kube-system", "daemonset/kube-proxy"),
    ("kube-system", "deployment/coredns"),
    ("local-path-storage", "deployment/local-path-provisioner"),
)
CREATE_DEADLINE_S: Final = 900.0
# The other run may be making everything.
LOCK_DEADLINE_S: Final = 1800.0
API_DEADLINE_S: Final = 180.0
ROLLOUT_DEADLINE_S: Final = 180
SHORT_S: Final = 60.0
REMEDY: Final = "see whether Docker runs and has room; `kind delete cluster --name multimodal` starts over"
CREATE_REMEDY: Final = f"{REMEDY}; CLUSTER_NODE_IMAGE names a node image that is here, where none can be pulled"


class KindCluster:
    """One kind node, a registry beside it, and the GPUs that its scheduler counts."""

    name = "kind"

    def __init__(self, paths: Paths, progress: Progress, gpu_count: int, environ: Mapping[str, str]) -> None:
        self._paths = paths
        self._progress = progress
        self._gpu_count = gpu_count
        # Where no registry of images is in reach, these are on this machine already.
        self._node_image = environ.get("CLUSTER_NODE_IMAGE")
        self._registry_image = environ.get("CLUSTER_REGISTRY_IMAGE")

    def up(self) -> None:
        """Make what is not there: cluster, registry, the way from one to the other, GPUs."""
        self._exists()  # before minutes of building: kind or Docker may be missing
        clients.ensure(self._paths, self._progress)
        with self._alone():
            self._start_node()
            registry_container.ensure(self._paths, self._progress, image=self._registry_image, network=NETWORK)
            self._lead_to_registry()
            daemons.ensure(self._keeper(), self._paths, self._progress)

    def down(self, *, purge: bool) -> None:
        """Remove the cluster.

        Args:
            purge: remove what was pushed to the registry, and logs, too.
        """
        with self._alone():
            daemons.stop("gpu-keeper", self._paths)
            with self._progress.step("delete the kind cluster"):
                run("kind", ["kind", "delete", "cluster", *self._named()], seconds=CREATE_DEADLINE_S, remedy=REMEDY)
            registry_container.remove(purge=purge)
            if purge:
                shutil.rmtree(self._paths.logs, ignore_errors=True)
                AUDIT_LOG.unlink(missing_ok=True)
            self._paths.kubeconfig.unlink(missing_ok=True)

    def restart(self, part: str) -> None:
        """Restart a service of the node, such as the kubelet, or the registry."""
        in_node = ["exec", NODE, "systemctl", "restart", part]
        self._docker(*(["restart", registry_container.CONTAINER] if part == "registry" else in_node))

    def status(self) -> dict[str, str]:
        """Say whether the node, the registry and the keeper of GPUs run."""
        running = quietly(["docker", "exec", NODE, "systemctl", "is-active", "kubelet"])
        keeper = daemons.find("gpu-keeper", self._paths)
        return {
            "node": "ready" if running else "down",
            "registry": "ready" if registry_container.answers_here() else "down",
            "gpu-keeper": "ready" if keeper else "down",
        }

    def env(self) -> dict[str, str]:
        """Return what programs need; nodes and this machine name the registry alike."""
        return {
            "KUBECONFIG": str(self._paths.kubeconfig),
            "MULTIMODAL_REGISTRY": REGISTRY,
            "MULTIMODAL_AUDIT_LOG": str(AUDIT_LOG),
            "PATH": clients.folders(self._paths),
        }

    def log(self, part: str) -> Path:
        """Name the one log that is on this side of Docker."""
        if part != "gpu-keeper":
            raise ClusterError("logs", f"{part} logs inside the node", "`kind export logs --name multimodal` has them")
        return daemons.log_of(part, self._paths)

    def _alone(self) -> AbstractContextManager[None]:
        return locked(self._paths.lock, seconds=LOCK_DEADLINE_S, what="the cluster")

    def _start_node(self) -> None:
        exists = self._exists()
        stopped = exists and not quietly(["docker", "exec", NODE, "true"])
        if stopped:  # as by Docker's own end
            self._docker("start", NODE)
        elif not exists:
            self._create()
        self._write_kubeconfig()
        self._wait_for_system(anew=stopped)
        # The node's root wrote it for itself; who may ask Docker may read it.
        quietly(["docker", "exec", NODE, "chmod", "a+r", NODE_AUDIT_LOG])

    def _create(self) -> None:
        AUDIT_LOG.parent.mkdir(parents=True, exist_ok=True)
        image = [f"--image={self._node_image}"] if self._node_image else []
        with self._progress.step("create the kind cluster"):
            command = ["kind", "create", "cluster", *self._named(), f"--config={CONFIG}", "--wait=300s", *image]
            run("kind", command, seconds=CREATE_DEADLINE_S, remedy=CREATE_REMEDY, folder=PROJECT)

    def _exists(self) -> bool:
        listed = run("kind", ["kind", "get", "clusters"], seconds=SHORT_S, remedy=REMEDY)
        return CLUSTER_NAME in listed.split()

    def _named(self) -> list[str]:
        return [f"--name={CLUSTER_NAME}", f"--kubeconfig={self._paths.kubeconfig}"]

    def _docker(self, *arguments: str, text: str | None = None) -> str:
        return run("docker", ["docker", *arguments], seconds=300, remedy=REMEDY, text=text)

    def _write_kubeconfig(self) -> None:
        """Write the credentials as JSON, the form that every reader here takes."""
        given = run("kind", ["kind", "get", "kubeconfig", f"--name={CLUSTER_NAME}"], seconds=SHORT_S, remedy=REMEDY)
        with tempfile.NamedTemporaryFile("w") as yaml:
            yaml.write(given)
            yaml.flush()
            shown = self._kubectl("config", "view", "--raw", "--output=json", f"--kubeconfig={yaml.name}")
        write_json(self._paths.kubeconfig, json.loads(shown)).chmod(0o600)

    def _wait_for_system(self, *, anew: bool) -> None:
        """Wait until names resolve, Services lead somewhere, and claims get volumes.

        Args:
            anew: the node was stopped, and what its pods said of themselves is not true any more.
        """
        api = Api(self._paths.kubeconfig)
        if not wait_until(lambda: api.says_ok("/readyz"), seconds=API_DEADLINE_S):
            problem = f"the API server is not ready after {API_DEADLINE_S:g}s"
            raise ClusterError("kind", problem, "`kind export logs --name multimodal` has its log")
        with self._progress.step("wait for kube-proxy, CoreDNS and the provisioner of volumes"):
            for action in ([["restart"]] if anew else []) + [["status", f"--timeout={ROLLOUT_DEADLINE_S}s"]]:
                for namespace, workload in SYSTEM:
                    self._kubectl(
                        *(f"--kubeconfig={self._paths.kubeconfig}", f"--namespace={namespace}"),
                        *("rollout", *action, workload),
                        seconds=ROLLOUT_DEADLINE_S + SHORT_S,
                        remedy=f"`kubectl --namespace {namespace} describe {workload}` and its pods say why",
                    )

    def _kubectl(self, *arguments: str, seconds: float = SHORT_S, remedy: str = REMEDY) -> str:
        program = str(clients.path("kubectl", self._paths))
        return run("kind", [program, *arguments], seconds=seconds, remedy=remedy)

    def _lead_to_registry(self) -> None:
        """Lead the node's containerd to the registry under the name used here."""
        hosts = f'[host."http://{registry_container.CONTAINER}:{registry_container.PORT}"]\n'
        folder = f"/etc/containerd/certs.d/{REGISTRY}"
        self._docker("exec", NODE, "mkdir", "-p", folder)
        self._docker("exec", "--interactive", NODE, "cp", "/dev/stdin", f"{folder}/hosts.toml", text=hosts)

    def _keeper(self) -> daemons.Daemon:
        # Docker's users are often not root, who alone makes control groups.
        return dataclasses.replace(gpus.keeper(self._paths, self._gpu_count, NODE), tracked=False)
