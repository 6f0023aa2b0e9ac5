"""A cluster that already runs: it is looked at, never changed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from multimodal_cluster import clients
from multimodal_cluster.commands import run
from multimodal_cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress

DEFAULT_CLASS: Final = "storageclass.kubernetes.io/is-default-class"
REMEDY: Final = "set KUBECONFIG to a cluster whose API server answers, and log in to it"


class CurrentCluster:
    """The cluster that KUBECONFIG names."""

    name = "current"

    def __init__(self, paths: Paths, progress: Progress, environ: Mapping[str, str]) -> None:
        self._paths = paths
        self._progress = progress
        self._environ = environ

    def up(self) -> None:
        """Check that the cluster can be used.

        Raises:
            ClusterError: it does not answer, or lacks something.
        """
        clients.ensure(self._paths, self._progress)
        for part, state in self.status().items():
            self._progress.say(f"{part}: {state}")
            if state != "ready":
                raise ClusterError(part, state, REMEDIES[part])

    def down(self, *, purge: bool) -> None:
        """Leave the cluster alone: who made it takes it down."""
        kept = "the cluster and what is in it" if purge else "the cluster"
        self._progress.say(f"CLUSTER=current: {kept} stays as it is")

    def restart(self, part: str) -> None:
        """Refuse: the parts are not ours."""
        raise ClusterError("restart", f"{part} belongs to a cluster that we did not make", "restart it where it runs")

    def status(self) -> dict[str, str]:
        """Say whether the cluster answers, has a ready node and a default storage class."""
        nodes = self._items("nodes")
        classes = self._items("storageclasses")
        defaults = [each for each in classes if each["metadata"].get("annotations", {}).get(DEFAULT_CLASS) == "true"]
        return {
            "nodes": "ready" if any(map(_is_ready, nodes)) else f"none of {len(nodes)} is ready",
            "storage": "ready" if defaults else f"none of {len(classes)} storage classes is the default",
        }

    def env(self) -> dict[str, str]:
        """Return what programs need; the registry is one that the cluster's nodes and this machine both reach."""
        given = {name: self._environ[name] for name in ("KUBECONFIG", "MULTIMODAL_REGISTRY") if name in self._environ}
        return {**given, "PATH": clients.folders(self._paths)}

    def log(self, part: str) -> Path:
        """Refuse: the logs are where the parts run."""
        raise ClusterError("logs", f"{part} belongs to a cluster that we did not make", "read its log where it runs")

    def _items(self, kind: str) -> list[dict[str, Any]]:
        kubectl = str(clients.path("kubectl", self._paths))
        listed = run("KUBECONFIG", [kubectl, "get", kind, "-o", "json"], seconds=60, remedy=REMEDY)
        items: list[dict[str, Any]] = json.loads(listed)["items"]
        return items


REMEDIES: Final = {
    "nodes": "`kubectl describe nodes` says why no node is ready",
    "storage": f"annotate one with {DEFAULT_CLASS}=true, or name a class in each resource",
}


def _is_ready(node: Mapping[str, Any]) -> bool:
    conditions = node["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
