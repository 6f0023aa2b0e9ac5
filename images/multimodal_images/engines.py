"""What builds images: buildah, which needs no daemon, or Docker; both read the same Containerfiles."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from multimodal_cluster.commands import quietly, run
from multimodal_cluster.errors import ClusterError
from multimodal_images import registry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

BUILD_DEADLINE_S: Final = 2400.0
SHORT_S: Final = 120.0
REMEDY: Final = "see whether the package index answers and the disk has 30 GB free, and run again"
BASE_ENVIRONMENT: Final = "LANG=C.UTF-8"


@dataclass(frozen=True, slots=True)
class Build:
    """One build of one Containerfile.

    Attributes:
        image: name and tag of the result.
        parent: what the Containerfile calls PARENT.
        containerfile: the file.
        context: folder that the build may read.
        secrets: id → file that the build may read and that does not stay in the image.
    """

    image: str
    parent: str
    containerfile: Path
    context: Path
    secrets: Mapping[str, Path]

    def options(self) -> list[str]:
        """Return what both programs call alike."""
        secrets = [word for name, file in self.secrets.items() for word in ("--secret", f"id={name},src={file}")]
        named = ["--tag", self.image, "--file", str(self.containerfile), "--build-arg", f"PARENT={self.parent}"]
        return ["--network", "host", *named, *secrets, str(self.context)]


class Engine(Protocol):
    """One program that builds images and keeps them on this machine; every method but `has` may raise ClusterError."""

    def has(self, image: str) -> bool:
        """Tell whether the image is here."""

    def build(self, build: Build, log: Path) -> None:
        """Build an image."""

    def push(self, image: str, reference: str, log: Path) -> None:
        """Push an image to a registry."""

    def load_base(self, archive: Path, image: str, log: Path) -> None:
        """Make an image of a root file system."""


class Buildah:
    """buildah, with a store of its own."""

    def __init__(self, folder: Path, uv_cache: Path) -> None:
        storage = ("--root", str(folder / "storage"), "--runroot", str(folder / "run"), "--storage-driver", "overlay")
        self._buildah = ("buildah", *storage)
        # buildah keeps cache mounts here, by their id: linked to uv's own cache, nothing is downloaded twice.
        mounts = folder / "tmp" / "buildah-cache"
        mounts.mkdir(parents=True, exist_ok=True)
        if not (mounts / "uv").exists():
            (mounts / "uv").symlink_to(uv_cache)
        self._environment = {**os.environ, "TMPDIR": str(folder / "tmp")}

    def has(self, image: str) -> bool:
        """Ask the store."""
        return quietly([*self._buildah, "inspect", "--type", "image", image], seconds=SHORT_S)

    def build(self, build: Build, log: Path) -> None:
        """Build with chroot alone: it works where containers cannot be nested."""
        options = ("bud", "--isolation", "chroot", "--pull=false", "--format", "oci")
        self._run(build.image, [*options, *build.options()], log)

    def push(self, image: str, reference: str, log: Path) -> None:
        """Push, compressed weakly and quickly: both ends are usually this machine."""
        plain_http = ("--tls-verify=false",) if registry.is_local(reference) else ()
        compression = ("--compression-format", "zstd", "--compression-level", "1")
        self._run(image, ["push", *plain_http, *compression, image, f"docker://{reference}"], log)

    def load_base(self, archive: Path, image: str, log: Path) -> None:
        """Unpack into an empty container and commit it."""
        container = run(image, [*self._buildah, "from", "scratch"], seconds=SHORT_S, remedy=REMEDY).strip()
        self._run(image, ["add", "--quiet", container, str(archive), "/"], log)
        self._run(image, ["config", "--env", BASE_ENVIRONMENT, container], log)
        self._run(image, ["commit", "--quiet", "--rm", container, image], log)

    def _run(self, part: str, arguments: Sequence[str], log: Path) -> None:
        _logged(part, [*self._buildah, *arguments], log, self._environment)


class Docker:
    """Docker with BuildKit."""

    def has(self, image: str) -> bool:
        """Ask the daemon."""
        return quietly(["docker", "image", "inspect", image], seconds=SHORT_S)

    def build(self, build: Build, log: Path) -> None:
        """Build in the daemon."""
        _logged(build.image, ["docker", "build", *build.options()], log, {**os.environ, "DOCKER_BUILDKIT": "1"})

    def push(self, image: str, reference: str, log: Path) -> None:
        """Push under the registry's name."""
        _logged(image, ["docker", "tag", image, reference], log, os.environ)
        _logged(image, ["docker", "push", "--quiet", reference], log, os.environ)

    def load_base(self, archive: Path, image: str, log: Path) -> None:
        """Import in one step."""
        _logged(
            image, ["docker", "import", "--change", f"ENV {BASE_ENVIRONMENT}", str(archive), image], log, os.environ
        )


def _logged(part: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        try:
            done = subprocess.run(
                command, stdout=output, stderr=output, timeout=BUILD_DEADLINE_S, check=False, env=environment
            )
        except FileNotFoundError as error:
            raise ClusterError(part, f"{command[0]} is not installed", f"install {command[0]}") from error
        except subprocess.TimeoutExpired as error:
            raise ClusterError(part, f"not done after {BUILD_DEADLINE_S:g}s", REMEDY, log) from error
    if done.returncode != 0:
        raise ClusterError(part, f"{command[0]} ended with {done.returncode}", REMEDY, log)
