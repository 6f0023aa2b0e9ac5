"""The programs that people use a cluster with: the machine's own, or built where it has none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_cluster import binaries

if TYPE_CHECKING:
    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress


def ensure(paths: Paths, progress: Progress) -> None:
    """Build the clients that the machine lacks."""
    for name, group in binaries.CLIENTS.items():
        if shutil.which(name) is None:
            binaries.build(group, paths, progress, only=name)


def path(name: str, paths: Paths) -> Path:
    """Return the program's file: the machine's own first."""
    own = shutil.which(name)
    return Path(own) if own else binaries.program(binaries.CLIENTS[name], name, paths)


def folders(paths: Paths) -> str:
    """Return what to put before PATH so that every client is found."""
    return ":".join(dict.fromkeys(str(path(name, paths).parent) for name in binaries.CLIENTS))
