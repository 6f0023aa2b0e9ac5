"""The command line: `python3 images COMMAND`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Final

from multimodal_cluster.errors import ClusterError
from multimodal_cluster.locks import locked
from multimodal_cluster.paths import paths_of
from multimodal_cluster.progress import Progress
from multimodal_cluster.providers import choose
from multimodal_images import building, nodes, references

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multimodal_cluster.paths import Paths

DESCRIPTION = """\
Builds the images of operator, builder and server and pushes them to a registry. An image is named after the digest of
what it is made of: nothing is built or pushed twice.

MULTIMODAL_REGISTRY is the registry (default: the cluster's own). CONTAINER_ENGINE chooses buildah or docker (default:
docker where it answers). BASE names an image with Python 3.11 to stand on (default: one made from Debian packages).
MULTIMODAL_CACHE is the folder that everything lies in.
"""
# A first build downloads and pushes gigabytes.
OTHER_RUN_S: Final = 3600.0


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python3 images", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build and push what is missing; prints the references, writes images.json")
    commands.add_parser("pull", help="have the cluster's nodes pull them, so that no first start waits for it")
    asked = parser.parse_args(arguments)
    try:
        paths = paths_of(os.environ)
        if asked.command == "build":
            _build(paths)
        else:
            nodes.pull(references.read(paths), paths, Progress())
    except ClusterError as error:
        print(error.report(), file=sys.stderr)
        return 1
    return 0


def _build(paths: Paths) -> None:
    progress = Progress()
    server = os.environ.get("MULTIMODAL_REGISTRY") or choose(os.environ, paths, progress).env().get(
        "MULTIMODAL_REGISTRY"
    )
    if not server:
        remedy = "set it to a registry that this machine can push to and the cluster's nodes can pull from"
        raise ClusterError("MULTIMODAL_REGISTRY", "not set, and the cluster has no registry of ours", remedy)
    with locked(paths.cache / "images" / "lock", seconds=OTHER_RUN_S, what="another build of images"):
        published = building.publish(paths, progress, server)
    references.write(published, paths)
    for program, reference in published.items():
        print(f"{program:8}  {reference}")
