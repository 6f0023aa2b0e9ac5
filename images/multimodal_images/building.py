"""Builds and pushes what is not there yet."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_cluster import packages
from multimodal_cluster.commands import quietly, run
from multimodal_cluster.errors import ClusterError
from multimodal_images import base, registry, wheel
from multimodal_images.engines import Build, Buildah, Docker
from multimodal_images.image import PUBLISHED, ROOT
from multimodal_locks import uv

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress
    from multimodal_images.engines import Engine
    from multimodal_images.image import Image


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all builds of one run share.

    Attributes:
        folder: where everything lies.
        engine: what builds.
        base: image under all others.
        base_id: what its content is known by.
        wheel: the project.
        uv: uv's program.
        progress: told of every step.
    """

    folder: Path
    engine: Engine
    base: str
    base_id: str
    wheel: Path
    uv: Path
    progress: Progress

    def local(self, image: Image) -> str:
        """Name an image on this machine."""
        return f"localhost/{image.name}:{image.tag(self.base_id, self.wheel)}"

    def ensure(self, image: Image) -> str:
        """Build an image, and before it those under it, unless it is there; returns its local name."""
        name = self.local(image)
        if self.engine.has(name):
            return name
        parent = self.ensure(image.parent) if image.parent else self.base
        with (
            self.progress.step(f"build {image.name}"),
            tempfile.TemporaryDirectory(dir=self.folder) as context,
            tempfile.TemporaryDirectory(dir=self.folder) as secrets,
        ):
            self._fill(Path(context), image)
            made = Build(name, parent, ROOT / image.containerfile, Path(context), _secrets(Path(secrets)))
            self.engine.build(made, self.log(image))
        return name

    def log(self, image: Image) -> Path:
        """Name the log of an image's builds and pushes."""
        return self.folder / "logs" / f"{image.name}.log"

    def _fill(self, context: Path, image: Image) -> None:
        for file in (self.uv, *image.files(self.wheel)):
            shutil.copy2(file, context)


def publish(paths: Paths, progress: Progress, server: str) -> dict[str, str]:
    """Have a registry hold every published image; returns program → reference.

    Raises:
        ClusterError: something cannot be built or pushed.
    """
    folder = paths.cache / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        workshop = _workshop(folder, Path(scratch), paths, progress)
        references = {}
        for program, image in PUBLISHED.items():
            tag = image.tag(workshop.base_id, workshop.wheel)
            references[program] = f"{server}/{image.name}:{tag}"
            if not registry.has(server, image.name, tag):
                built = workshop.ensure(image)
                with progress.step(f"push {image.name}"):
                    workshop.engine.push(built, references[program], workshop.log(image))
    return references


def _workshop(folder: Path, scratch: Path, paths: Paths, progress: Progress) -> Workshop:
    program = uv.program(paths)
    engine = _engine(folder, program, progress)
    image, identity = _base(folder, engine, progress)
    return Workshop(folder, engine, image, identity, wheel.build(scratch, program), program, progress)


def _engine(folder: Path, uv_program: Path, progress: Progress) -> Engine:
    asked = os.environ.get("CONTAINER_ENGINE") or ("docker" if quietly(["docker", "info"], seconds=10) else "buildah")
    if asked == "docker":
        return Docker()
    if asked != "buildah":
        raise ClusterError("CONTAINER_ENGINE", f"{asked!r} builds no images here", "set it to buildah or docker")
    _install("buildah", progress)
    cache = run("uv", [str(uv_program), "cache", "dir"], seconds=60, remedy="set UV_CACHE_DIR")
    return Buildah(folder, Path(cache.strip()))


def _base(folder: Path, engine: Engine, progress: Progress) -> tuple[str, str]:
    given = os.environ.get("BASE")
    if given:
        return given, given
    try:
        _install("mmdebstrap", progress)
    except ClusterError as error:
        remedy = f"{error.remedy}; or set BASE to an image with Python 3.11, which needs no package"
        raise ClusterError(error.part, error.problem, remedy) from error
    archive = base.archive(folder, progress)
    identity = base.identity(archive)
    image = f"localhost/multimodal-base:{identity}"
    if not engine.has(image):
        with progress.step("import the base image"):
            engine.load_base(archive, image, folder / "logs" / "multimodal-base.log")
    return image, identity


def _install(program: str, progress: Progress) -> None:
    if shutil.which(program) is None:
        packages.install([program], progress)


def _secrets(folder: Path) -> Mapping[str, Path]:
    """Write what uv must know of this machine's package index; certificates and index names stay out of images."""
    environment = uv.environment()
    settings = folder / "uv.toml"
    settings.write_text(uv.settings_file(environment))
    certificates = environment.get("SSL_CERT_FILE")
    return {"uv": settings} | ({"certificates": Path(certificates)} if certificates else {})
