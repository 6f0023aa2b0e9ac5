"""The cluster made by kind, for people with Docker."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Final

from multimodal_cluster import clients, daemons, gpus
from multimodal_cluster.addresses import REGISTRY
from multimodal_cluster.commands import quietly, run
from multimodal_cluster.errors import ClusterError
from multimodal_cluster.kubeconfigs import write_json
from multimodal_cluster.paths import SOURCES

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress

CLUSTER_NAME: Final = "multimodal"
NODE: Final = f"{CLUSTER_NAME}-control-plane"
REGISTRY_CONTAINER: Final = f"{CLUSTER_NAME}-registry"
REGISTRY_IMAGE: Final = "registry:3"
PROJECT: Final = SOURCES.parent
CONFIG: Final = PROJECT / "kind-config.yaml"
# kind's own paths are relative to the folder that it runs in; kind-config.yaml names this one.
AUDIT_LOG: Final = PROJECT / "out" / "kind" / "audit.log"
CREATE_DEADLINE_S: Final = 900.0
REMEDY: Final = "see whether Docker runs and has room; `kind delete cluster --name multimodal` starts over"


class KindCluster:
    """One kind node, a registry beside it, and the GPUs that its scheduler counts."""

    name = "kind"

    def __init__(self, paths: Paths, progress: Progress, gpu_count: int) -> None:
        self._paths = paths
        self._progress = progress
        self._gpu_count = gpu_count

    def up(self) -> None:
        """Make what is not there: cluster, registry, the way from one to the other, GPUs."""
        exists = self._exists()  # before minutes of building: kind or Docker may be missing
        clients.ensure(self._paths, self._progress)
        if not exists:
            AUDIT_LOG.parent.mkdir(parents=True, exist_ok=True)
            with self._progress.step("create the kind cluster"):
                self._kind("create", "cluster", f"--config={CONFIG}", "--wait=300s")
        self._write_kubeconfig()
        with self._progress.step("start the registry"):
            self._start_registry()
        daemons.ensure(self._keeper(), self._paths, self._progress)

    def down(self, *, purge: bool) -> None:
        """Remove the cluster.

        Args:
            purge: remove what was pushed to the registry too.
        """
        daemons.stop("gpu-keeper", self._paths)
        with self._progress.step("delete the kind cluster"):
            self._kind("delete", "cluster")
        action = ["rm", "--force", "--volumes"] if purge else ["stop"]
        quietly(["docker", *action, REGISTRY_CONTAINER], seconds=60)
        self._paths.kubeconfig.unlink(missing_ok=True)

    def restart(self, part: str) -> None:
        """Restart a service of the node, such as the kubelet, or the registry."""
        target = ["restart", REGISTRY_CONTAINER] if part == "registry" else ["exec", NODE, "systemctl", "restart", part]
        self._docker(*target)

    def status(self) -> dict[str, str]:
        """Say whether the node, the registry and the keeper of GPUs run."""
        running = quietly(["docker", "exec", NODE, "systemctl", "is-active", "kubelet"])
        registry = run(
            "docker", ["docker", "ps", "-q", f"--filter=name={REGISTRY_CONTAINER}"], seconds=60, remedy=REMEDY
        )
        keeper = daemons.find("gpu-keeper", self._paths)
        return {
            "node": "ready" if running else "down",
            "registry": "ready" if registry.strip() else "down",
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

    def _exists(self) -> bool:
        listed = run("kind", ["kind", "get", "clusters"], seconds=60, remedy=REMEDY)
        return CLUSTER_NAME in listed.split()

    def _kind(self, *arguments: str) -> str:
        return run(
            "kind",
            ["kind", *arguments, f"--name={CLUSTER_NAME}", f"--kubeconfig={self._paths.kubeconfig}"],
            seconds=CREATE_DEADLINE_S,
            remedy=REMEDY,
            folder=PROJECT,
        )

    def _docker(self, *arguments: str, text: str | None = None) -> str:
        return run("docker", ["docker", *arguments], seconds=300, remedy=REMEDY, text=text)

    def _write_kubeconfig(self) -> None:
        """Write the credentials as JSON, the form that every reader here takes."""
        self._paths.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        self._kind("export", "kubeconfig")
        kubectl = str(clients.path("kubectl", self._paths))
        command = [kubectl, "config", "view", "--raw", "-o", "json", f"--kubeconfig={self._paths.kubeconfig}"]
        write_json(self._paths.kubeconfig, json.loads(run("kind", command, seconds=60, remedy=REMEDY)))
        self._paths.kubeconfig.chmod(0o600)

    def _start_registry(self) -> None:
        """Run the registry in kind's network, and lead the node's containerd to it under the name used here."""
        if not quietly(["docker", "start", REGISTRY_CONTAINER], seconds=60):
            self._docker(
                *("run", "--detach", "--restart=unless-stopped", f"--name={REGISTRY_CONTAINER}"),
                *("--network=kind", f"--publish={REGISTRY}:5000", REGISTRY_IMAGE),
            )
        hosts = f'[host."http://{REGISTRY_CONTAINER}:5000"]\n'
        folder = f"/etc/containerd/certs.d/{REGISTRY}"
        self._docker("exec", NODE, "mkdir", "-p", folder)
        self._docker("exec", "--interactive", NODE, "cp", "/dev/stdin", f"{folder}/hosts.toml", text=hosts)

    def _keeper(self) -> daemons.Daemon:
        # Docker's users are often not root, who alone makes control groups.
        return dataclasses.replace(gpus.keeper(self._paths, self._gpu_count, NODE), tracked=False)
