"""`images.json`: what the last build published. It is a values file of the chart: `helm install -f images.json`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from multimodal_cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from multimodal_cluster.paths import Paths


def file(paths: Paths) -> Path:
    """Name the file."""
    return paths.cache / "images.json"


def write(references: Mapping[str, str], paths: Paths) -> None:
    """Write program → reference."""
    file(paths).write_text(json.dumps({"images": dict(references)}, indent=2) + "\n")


def read(paths: Paths) -> dict[str, str]:
    """Return program → reference.

    Raises:
        ClusterError: nothing was built yet.
    """
    if not file(paths).exists():
        raise ClusterError("images", f"{file(paths)} does not exist", "run `make images` first")
    found: dict[str, str] = json.loads(file(paths).read_text())["images"]
    return found
