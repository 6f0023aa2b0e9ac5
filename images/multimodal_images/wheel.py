"""The project as one wheel: equal sources make equal bytes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from multimodal_cluster.commands import run
from multimodal_images.image import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE_S: Final = 120.0


def build(folder: Path) -> Path:
    """Build the wheel into an empty folder, with the pinned build backend of the environment that runs this.

    Raises:
        ClusterError: it cannot be built.
    """
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    run(
        "wheel",
        command,
        seconds=DEADLINE_S,
        remedy="run it by `make images`, in the development environment",
        folder=ROOT,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel
