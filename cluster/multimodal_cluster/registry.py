"""The local registry: images are pushed once, and the node pulls the layers that it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_cluster import binaries, kubeconfigs
from multimodal_cluster.addresses import REGISTRY
from multimodal_cluster.api import answers
from multimodal_cluster.daemons import Daemon

if TYPE_CHECKING:
    from multimodal_cluster.paths import Paths

ENVIRONMENT: Final = {"OTEL_TRACES_EXPORTER": "none"}


def registry(paths: Paths) -> Daemon:
    """Describe the registry, which answers on the loopback only."""
    config = kubeconfigs.write_json(paths.configs / "registry.json", configuration(str(paths.registry), REGISTRY))
    return Daemon(
        "registry",
        (str(binaries.program(binaries.REGISTRY, "registry", paths)), "serve", str(config)),
        lambda: answers(f"http://{REGISTRY}/v2/"),
        30,
        files=(config,),
        environment=ENVIRONMENT,
    )


def configuration(folder: str, address: str) -> dict[str, object]:
    """Return what the program reads.

    Args:
        folder: where it keeps what is pushed.
        address: where it listens, `host:port`.
    """
    return {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": folder}, "delete": {"enabled": True}},
        "http": {"addr": address},
    }
