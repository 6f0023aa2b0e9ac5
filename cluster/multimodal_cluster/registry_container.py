"""The registry beside kind's node: a container, of an image that can be pulled, is here, or is made here."""

from __future__ import annotations

import json
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from multimodal_cluster import binaries
from multimodal_cluster.addresses import REGISTRY
from multimodal_cluster.api import answers
from multimodal_cluster.commands import quietly, run
from multimodal_cluster.errors import ClusterError
from multimodal_cluster.kubeconfigs import write_json
from multimodal_cluster.registry import ENVIRONMENT, configuration
from multimodal_cluster.waiting import wait_until

if TYPE_CHECKING:
    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress

CONTAINER: Final = "multimodal-registry"
# What was pushed outlives the container.
VOLUME: Final = CONTAINER
FOLDER: Final = "/var/lib/registry"
PORT: Final = 5000
IMAGE: Final = "registry:3"
SHORT_S: Final = 60.0
PULL_S: Final = 300.0
READY_S: Final = 30.0
REMEDY: Final = f"see whether another program listens at {REGISTRY}; `docker logs {CONTAINER}` says what this one did"


def ensure(paths: Paths, progress: Progress, *, image: str | None, network: str) -> None:
    """Have the registry answer on this machine's loopback, and in a network of Docker's.

    Args:
        paths: where programs are built.
        progress: told of every step.
        image: what to run; None takes what can be had.
        network: the network that the node is in.

    Raises:
        ClusterError: it cannot be started, or does not answer.
    """
    if not quietly(["docker", "start", CONTAINER], seconds=SHORT_S):
        remove(purge=False)  # it is there if something else had its port when it was to start
        chosen = image or _image(paths, progress)
        with progress.step("start the registry"):
            _docker(
                *("run", "--detach", "--restart=unless-stopped", f"--name={CONTAINER}", f"--network={network}"),
                *(f"--publish={REGISTRY}:{PORT}", f"--volume={VOLUME}:{FOLDER}"),
                *(f"--env={name}={value}" for name, value in ENVIRONMENT.items()),
                chosen,
            )
    if not wait_until(answers_here, seconds=READY_S):
        raise ClusterError("registry", f"{REGISTRY} does not answer after {READY_S:g}s", REMEDY)


def remove(*, purge: bool) -> None:
    """Remove the container, and with `purge` what was pushed."""
    quietly(["docker", "rm", "--force", CONTAINER], seconds=SHORT_S)
    if purge:
        quietly(["docker", "volume", "rm", "--force", VOLUME], seconds=SHORT_S)


def answers_here() -> bool:
    """Tell whether the registry answers this machine."""
    return answers(f"http://{REGISTRY}/v2/")


def _image(paths: Paths, progress: Progress) -> str:
    """Return the usual image, or where it cannot be had, one of the program that `CLUSTER=local` runs."""
    built = binaries.folder_of(binaries.REGISTRY, paths).name
    own = f"cluster.local/{built.replace('-', ':', 1)}"
    for image in (IMAGE, own):
        if _is_here(image):
            return image
    with progress.step(f"pull {IMAGE}"):
        if quietly(["docker", "pull", "--quiet", IMAGE], seconds=PULL_S):
            return IMAGE
    progress.say(
        f"{IMAGE} cannot be pulled: the registry is built here; CLUSTER_REGISTRY_IMAGE would name another image"
    )
    binaries.build(binaries.REGISTRY, paths, progress)
    _import(own, binaries.program(binaries.REGISTRY, "registry", paths))
    return own


def _is_here(image: str) -> bool:
    return quietly(["docker", "image", "inspect", image], seconds=SHORT_S)


def _import(name: str, program: Path) -> None:
    """Give Docker an image of two files: a static program and its configuration."""
    with tempfile.TemporaryDirectory() as scratch:
        archive, config = Path(scratch) / "root.tar", Path(scratch) / "config.json"
        write_json(config, configuration(FOLDER, f":{PORT}"))
        with tarfile.open(archive, "w") as tar:
            tar.add(program, program.name)
            tar.add(config, config.name)
        entry = json.dumps([f"/{program.name}", "serve", f"/{config.name}"])
        _docker("import", "--change", f"ENTRYPOINT {entry}", str(archive), name)


def _docker(*arguments: str) -> None:
    run("registry", ["docker", *arguments], seconds=PULL_S, remedy=REMEDY)
