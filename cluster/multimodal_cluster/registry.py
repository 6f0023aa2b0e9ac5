"""The local registry: images are pushed once, and the node pulls the layers that it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multimodal_cluster import binaries, kubeconfigs
from multimodal_cluster.addresses import REGISTRY
from multimodal_cluster.api import answers
from multimodal_cluster.daemons import Daemon

if TYPE_CHECKING:
    from multimodal_cluster.paths import Paths


def registry(paths: Paths) -> Daemon:
    """Describe the registry, which answers on the loopback only."""
    config = kubeconfigs.write_json(
        paths.configs / "registry.json",
        {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(paths.registry)}, "delete": {"enabled": True}},
            "http": {"addr": REGISTRY},
        },
    )
    return Daemon(
        "registry",
        (str(binaries.program(binaries.REGISTRY, "registry", paths)), "serve", str(config)),
        lambda: answers(f"http://{REGISTRY}/v2/"),
        30,
        files=(config,),
        environment={"OTEL_TRACES_EXPORTER": "none"},
    )
