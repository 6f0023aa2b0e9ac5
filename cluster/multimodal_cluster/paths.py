"""Where everything lies: all of it in one cache folder outside the source tree."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from multimodal_cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCES: Final = Path(__file__).resolve().parent.parent
# The kernel takes socket paths of at most 107 bytes; the longest one here is containerd's.
SOCKET_PATH_LIMIT: Final = 107


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders of one cache.

    Attributes:
        cache: root, shared with the other programs of the project.
    """

    cache: Path

    @property
    def binaries(self) -> Path:
        """Built programs, one folder per version; kept for ever."""
        return self.cache / "bin"

    @property
    def state(self) -> Path:
        """Everything one cluster writes."""
        return self.cache / "cluster"

    @property
    def fresh(self) -> Path:
        """What lives as long as one cluster: `down` and the clean-up after a crash remove it."""
        return self.state / "run"

    @property
    def pids(self) -> Path:
        """One file per daemon."""
        return self.fresh / "pids"

    @property
    def configs(self) -> Path:
        """Configuration files and kubeconfigs of the daemons."""
        return self.fresh / "config"

    @property
    def certificates(self) -> Path:
        """Keys and certificates."""
        return self.fresh / "certificates"

    @property
    def etcd(self) -> Path:
        """The cluster's objects."""
        return self.fresh / "etcd"

    @property
    def kubelet(self) -> Path:
        """Volumes and bookkeeping of the kubelet."""
        return self.fresh / "kubelet"

    @property
    def pod_logs(self) -> Path:
        """What containers print."""
        return self.fresh / "pod-logs"

    @property
    def volumes(self) -> Path:
        """Persistent volumes of the default storage class."""
        return self.fresh / "volumes"

    @property
    def leases(self) -> Path:
        """Pod addresses that are taken."""
        return self.fresh / "leases"

    @property
    def containerd_state(self) -> Path:
        """Sockets, network namespaces and mounts of running containers."""
        return self.fresh / "containerd"

    @property
    def containerd_socket(self) -> Path:
        """Where containerd listens."""
        return self.containerd_state / "containerd.sock"

    @property
    def containerd_root(self) -> Path:
        """Images and their layers: kept by `down`, so that nothing is imported or pulled twice."""
        return self.state / "containerd"

    @property
    def registry(self) -> Path:
        """What was pushed to the local registry: kept by `down`."""
        return self.state / "registry"

    @property
    def logs(self) -> Path:
        """One log per part: kept by `down`, for those who ask why."""
        return self.state / "logs"

    @property
    def audit_log(self) -> Path:
        """Every request to the API server, one JSON object per line."""
        return self.logs / "audit.log"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's credentials."""
        return self.state / "kubeconfig"

    @property
    def cgroup(self) -> str:
        """The control group above everything that runs: what is in it is this cluster's, and no other's, to end."""
        return f"multimodal-cluster-{hashlib.sha256(os.fsencode(self.state)).hexdigest()[:8]}"

    @property
    def lock(self) -> Path:
        """Held by the one `up` or `down` at work."""
        return self.state / "lock"


def paths_of(environ: Mapping[str, str]) -> Paths:
    """Find the cache: `MULTIMODAL_CACHE`, or a folder of the user's cache.

    Raises:
        ClusterError: the folder's name is too long for the sockets below it.
    """
    given = environ.get("MULTIMODAL_CACHE")
    paths = Paths(Path(given).resolve() if given else Path.home() / ".cache" / "multimodal-operator")
    longest = os.fsencode(f"{paths.containerd_socket}.ttrpc")
    if len(longest) > SOCKET_PATH_LIMIT:
        raise ClusterError(
            "MULTIMODAL_CACHE",
            f"{paths.cache} is too long: a socket below it would have a name of {len(longest)} bytes",
            f"choose a folder whose sockets stay within {SOCKET_PATH_LIMIT} bytes",
        )
    return paths
