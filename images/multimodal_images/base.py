"""The image under all others: Debian with Python, made from packages, since no registry of images is assumed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from multimodal_cluster.commands import run

if TYPE_CHECKING:
    from multimodal_cluster.progress import Progress

SUITE: Final = "bookworm"
# Triton's Python backend loads libpython; without apt in the image, nothing else brings the C++ library.
PACKAGES: Final = ("ca-certificates", "libpython3.11", "libstdc++6", "python3")
# Without the first, Perl and its modules come to merge folders that are merged already. Package mirror, name and name
# server are of the machine that builds. Licences stay; manuals, and what differs by the second, do not.
OPTIONS: Final = (
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    '--customize-hook=rm -rf "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d',
    '--customize-hook=rm -f "$1"/etc/hostname "$1"/etc/resolv.conf',
    '--customize-hook=rm -rf "$1"/usr/share/man/* "$1"/usr/share/info/* "$1"/usr/share/locale/*',
    '--customize-hook=find "$1"/usr/share/doc -type f ! -name copyright -delete',
    '--customize-hook=rm -rf "$1"/usr/share/python3/debpython/__pycache__',
)
HOST_SOURCES: Final = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
OS_RELEASE: Final = Path("/etc/os-release")
# Files get the date of the suite's first release, so that equal packages make equal bytes.
EPOCH: Final = "1686355200"
DEADLINE_S: Final = 1200.0
REMEDY: Final = "see whether the package mirror answers `apt-get update`, and run again"


def archive(folder: Path, progress: Progress) -> Path:
    """Return the root file system as an archive, made once per recipe.

    Raises:
        ClusterError: it cannot be made.
    """
    recipe = hashlib.sha256(repr((SUITE, PACKAGES, OPTIONS, EPOCH)).encode()).hexdigest()[:8]
    made = folder / f"base-{SUITE}-{recipe}.tar"
    if not made.exists():
        partial = made.with_suffix(".partial.tar")
        command = [
            *("mmdebstrap", "--quiet", "--variant=essential", f"--include={','.join(PACKAGES)}", *OPTIONS),
            *(SUITE, str(partial), *_mirror()),
        ]
        with progress.step("make the base image's root file system (once)"):
            folder.mkdir(parents=True, exist_ok=True)
            environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
            run("base image", command, seconds=DEADLINE_S, remedy=REMEDY, environment=environment)
            partial.rename(made)
    return made


def _mirror() -> list[str]:
    # A machine of the same suite has working sources, which may be a mirror; else the distribution's own are taken.
    same = OS_RELEASE.exists() and f"VERSION_CODENAME={SUITE}" in OS_RELEASE.read_text().split()
    found = [str(file) for file in HOST_SOURCES if same and file.exists()]
    return found[:1]


def identity(made: Path) -> str:
    """Digest the archive: newer packages are another base."""
    with made.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]
