"""GPUs that the scheduler can count: capacity in the node's status, kept there.

A device plugin would need devices. The scheduler needs only the number, which a restarted kubelet resets to none.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from multimodal_cluster import api
from multimodal_cluster.addresses import GPU_RESOURCE, NODE_NAME
from multimodal_cluster.daemons import Daemon
from multimodal_cluster.paths import SOURCES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_cluster.paths import Paths

WATCH_S: Final = 300
RETRY_S: Final = 1.0


def missing_gpus(status: Mapping[str, Any], count: int) -> list[dict[str, object]]:
    """Return the JSON patch that sets the node's GPUs, empty if they are there.

    Args:
        status: the node's status.
        count: GPUs the node should have.
    """
    key = GPU_RESOURCE.replace("/", "~1")
    return [
        {"op": "add", "path": f"/status/{field}/{key}", "value": str(count)}
        for field in ("capacity", "allocatable")
        if status.get(field, {}).get(GPU_RESOURCE) != str(count)
    ]


def keep(kubeconfig: Path, node: str, count: int) -> None:
    """Set a node's GPUs whenever they are missing, for ever; a lost connection is tried again."""
    while True:
        try:
            server = api.Api(kubeconfig)
            for event in server.watch(f"/api/v1/nodes?fieldSelector=metadata.name={node}", seconds=WATCH_S):
                patch = missing_gpus(event["object"].get("status", {}), count)
                if patch:
                    server.patch(f"/api/v1/nodes/{node}/status", patch)
                    print(f"set {GPU_RESOURCE} to {count}", flush=True)
        except OSError as error:
            print(f"the API server does not answer: {error}", file=sys.stderr, flush=True)
        time.sleep(RETRY_S)


def keeper(paths: Paths, count: int, node: str = NODE_NAME) -> Daemon:
    """Describe the process that keeps the GPUs set; it is ready when the node has them."""
    return Daemon(
        "gpu-keeper",
        # Started from a virtual environment, it is the same program and outlives the environment.
        (str(Path(sys.executable).resolve()), str(SOURCES), "keep-gpus", node, str(count)),
        lambda: _has_gpus(paths.kubeconfig, node, count),
        60,
        files=(paths.kubeconfig, Path(__file__), Path(api.__file__)),
        environment={"MULTIMODAL_CACHE": str(paths.cache), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def _has_gpus(kubeconfig: Path, node: str, count: int) -> bool:
    try:
        seen = json.loads(api.Api(kubeconfig).get(f"/api/v1/nodes/{node}"))
    except OSError:
        return False
    return not missing_gpus(seen["status"], count)
