"""Which cluster: one of our own processes, one in Docker, or one that already runs."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final, Protocol

from multimodal_cluster.commands import quietly
from multimodal_cluster.current import CurrentCluster
from multimodal_cluster.errors import ClusterError
from multimodal_cluster.kind import KindCluster
from multimodal_cluster.local import LocalCluster

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress

DEFAULT_GPUS: Final = 4


class Provider(Protocol):
    """One way to have a cluster.

    Attributes:
        name: as in the variable CLUSTER.
    """

    name: str

    def up(self) -> None:
        """Have the cluster run."""

    def down(self, *, purge: bool) -> None:
        """Have it run no more."""

    def restart(self, part: str) -> None:
        """End one part and bring it up again."""

    def status(self) -> dict[str, str]:
        """Say of each part what it does; `ready` where all is well."""

    def env(self) -> dict[str, str]:
        """Return what programs need to use the cluster; PATH holds only what is to be put before it."""

    def log(self, part: str) -> Path:
        """Name the log of a part."""


def choose(environ: Mapping[str, str], paths: Paths, progress: Progress) -> Provider:
    """Choose as the variable CLUSTER says.

    Raises:
        ClusterError: it says something unknown.
    """
    asked = environ.get("CLUSTER") or ("kind" if _docker_and_kind() else "local")
    match asked:
        case "local":
            return LocalCluster(paths, progress, gpu_count(environ))
        case "kind":
            return KindCluster(paths, progress, gpu_count(environ), environ)
        case "current":
            return CurrentCluster(paths, progress, environ)
        case _:
            raise ClusterError("CLUSTER", f"{asked!r} is no way to have a cluster", "set it to local, kind or current")


def gpu_count(environ: Mapping[str, str]) -> int:
    """Read how many GPUs the node offers.

    Raises:
        ClusterError: it is no count.
    """
    given = environ.get("CLUSTER_GPUS", str(DEFAULT_GPUS))
    if not given.isdecimal():
        raise ClusterError("CLUSTER_GPUS", f"{given!r} is no count of GPUs", "set it to 0 or more")
    return int(given)


def _docker_and_kind() -> bool:
    return shutil.which("kind") is not None and quietly(["docker", "info"], seconds=10)
