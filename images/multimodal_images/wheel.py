"""The project as one wheel: equal sources make equal bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_cluster.commands import run
from multimodal_images.image import ROOT
from multimodal_locks import uv

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE_S: Final = 300.0


def build(folder: Path, uv_program: Path) -> Path:
    """Build the wheel into an empty folder, with the pinned build backend.

    Raises:
        ClusterError: it cannot be built.
    """
    run(
        "wheel",
        [
            *(str(uv_program), "build", "--quiet", "--wheel", "--no-python-downloads"),
            *("--build-constraints", str(uv.LOCKS / "build.txt"), "--require-hashes"),
            *("--out-dir", str(folder), str(ROOT)),
        ],
        seconds=DEADLINE_S,
        remedy="read the words of the build backend above",
        environment=uv.environment(),
    )
    (wheel,) = folder.glob("*.whl")
    return wheel
