"""The cluster made of processes of this machine."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

from multimodal_cluster import (
    addons,
    binaries,
    certificates,
    cgroups,
    containers,
    controlplane,
    daemons,
    gpus,
    images,
    leavings,
    network,
    node,
    packages,
)
from multimodal_cluster.addresses import POD_RANGE, REGISTRY
from multimodal_cluster.errors import ClusterError
from multimodal_cluster.locks import locked
from multimodal_cluster.registry import registry

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from multimodal_cluster.daemons import Daemon
    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress

# The other run may be building everything.
LOCK_DEADLINE_S: Final = 3600.0
# Only containerd reaches beyond this machine: for images of other registries.
FOREIGN: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE")
# In the order in which they start.
PARTS: Final = (
    "etcd",
    "registry",
    "containerd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "gpu-keeper",
)
# What these keep outlives the cluster, so they end in order; the others' work ends with them.
GRACEFUL: Final = ("kubelet", "registry", "containerd")


class LocalCluster:
    """Kubernetes as processes: no container engine is asked for."""

    name = "local"

    def __init__(self, paths: Paths, progress: Progress, gpu_count: int) -> None:
        self._paths = paths
        self._progress = progress
        self._gpu_count = gpu_count

    def up(self) -> None:
        """Bring everything up; what runs as it should is left alone."""
        self._check_user()
        packages.ensure(self._progress)
        for group in binaries.GROUPS:
            binaries.build(group, self._paths, self._progress)
        with self._alone():
            if leavings.crashed(self._paths):
                with self._progress.step("clean up after a cluster whose processes all ended"):
                    leavings.clean(self._paths, packages.cni_folder())
            self._prepare()
            self._start()
            addons.install(self._paths, self._progress)

    def down(self, *, purge: bool) -> None:
        """Take everything down and leave nothing on the machine but what a next `up` should not make twice.

        Args:
            purge: remove that too: images, what was pushed to the registry, logs.
        """
        self._check_user()
        with self._alone():
            if leavings.found(self._paths):
                with self._progress.step("take the cluster down"):
                    for name in GRACEFUL:
                        daemons.stop(name, self._paths)
                    leavings.clean(self._paths, packages.find_cni_folder())
            if purge:
                with self._progress.step(f"remove {self._paths.state}"):
                    for folder in (self._paths.containerd_root, self._paths.registry, self._paths.logs):
                        shutil.rmtree(folder, ignore_errors=True)
            self._paths.kubeconfig.unlink(missing_ok=True)

    def restart(self, part: str) -> None:
        """End one part and bring it up again."""
        self.log(part)
        with self._alone():
            daemons.stop(part, self._paths)
        self.up()

    def status(self) -> dict[str, str]:
        """Say of each part what it does; `ready` where all is well."""
        if not self._paths.fresh.exists():
            return dict.fromkeys(PARTS, "down")
        return {part.name: self._state(part) for part in self._parts()}

    def env(self) -> dict[str, str]:
        """Return what programs need to use the cluster; PATH holds only what is to be put before it."""
        folders = [str(binaries.folder_of(group, self._paths)) for group in binaries.CLIENTS.values()]
        return {
            "KUBECONFIG": str(self._paths.kubeconfig),
            "MULTIMODAL_REGISTRY": REGISTRY,
            "MULTIMODAL_AUDIT_LOG": str(self._paths.audit_log),
            "PATH": ":".join(folders),
        }

    def log(self, part: str) -> Path:
        """Name the log of a part."""
        if part not in PARTS:
            raise ClusterError("logs", f"there is no part {part!r}", f"name one of {', '.join(PARTS)}")
        return daemons.log_of(part, self._paths)

    def _check_user(self) -> None:
        if os.geteuid() != 0:
            raise ClusterError(
                "cluster",
                "containers and networks are made by root only",
                "run as root, or use kind (CLUSTER=kind) or a cluster that runs (CLUSTER=current)",
            )

    def _alone(self) -> AbstractContextManager[None]:
        return locked(self._paths.lock, seconds=LOCK_DEADLINE_S, what="the cluster")

    def _prepare(self) -> None:
        self._paths.fresh.mkdir(parents=True, exist_ok=True)
        network.prepare(self._paths)
        cgroups.prepare(self._paths.cgroup)
        certificates.make_all(self._paths.certificates)
        containers.write_network(self._paths, POD_RANGE)
        containers.write_registry_hosts(self._paths, REGISTRY)

    def _parts(self) -> list[Daemon]:
        paths = self._paths
        environment = {name: os.environ[name] for name in FOREIGN if name in os.environ}
        return [
            controlplane.etcd(paths),
            registry(paths),
            containers.containerd(
                paths,
                pause_image=images.PAUSE.name(paths),
                cni_plugins=packages.cni_folder(),
                environment=environment,
            ),
            controlplane.apiserver(paths),
            controlplane.controller_manager(paths),
            controlplane.scheduler(paths),
            node.kubelet(paths),
            node.kube_proxy(paths),
            gpus.keeper(paths, self._gpu_count),
        ]

    def _start(self) -> None:
        for part in self._parts():
            if part.name == "containerd" and not self._paths.kubelet.exists():
                # No kubelet ran in this cluster's life: what containerd remembers is of an earlier one.
                containers.start_clean(part, self._paths, self._progress)
            else:
                daemons.ensure(part, self._paths, self._progress)
            if part.name == "containerd":
                images.import_missing(self._paths, self._progress)

    def _state(self, part: Daemon) -> str:
        if daemons.find(part.name, self._paths) is None:
            return "ended"
        return "ready" if part.ready() else "not ready"
