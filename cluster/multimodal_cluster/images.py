"""Images of one static program each: nothing of a distribution, and no registry to ask."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from multimodal_cluster import binaries, containers

if TYPE_CHECKING:
    from multimodal_cluster.binaries import Group
    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress


MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
# machine name → name in images
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class SystemImage:
    """One of the cluster's own images.

    Attributes:
        group: what builds its program.
        program: the program, which lies at the image's root.
        user: the user that it runs as.
    """

    group: Group
    program: str
    user: str

    def name(self, paths: Paths) -> str:
        """Name the image after its program's version and digest: a new program is a new image."""
        folder = binaries.folder_of(self.group, paths).name
        return f"cluster.local/{self.program}:{folder.removeprefix(f'{self.group.name}-')}"


PAUSE: Final = SystemImage(binaries.TOOLS, "pause", "65535:65535")
VOLUME: Final = SystemImage(binaries.TOOLS, "volume", "0:0")
COREDNS: Final = SystemImage(binaries.COREDNS, "coredns", "65532:65532")
LOCAL_PATH: Final = SystemImage(binaries.LOCAL_PATH, "local-path-provisioner", "65532:65532")
IMAGES: Final = (PAUSE, VOLUME, COREDNS, LOCAL_PATH)


def import_missing(paths: Paths, progress: Progress) -> None:
    """Give containerd the images that it lacks."""
    present = containers.images(paths)
    for image in IMAGES:
        name = image.name(paths)
        if name not in present:
            with progress.step(f"import {name}"), tempfile.TemporaryDirectory() as scratch:
                archive = Path(scratch) / "image.tar"
                program = binaries.program(image.group, image.program, paths)
                write_archive(archive, name, compose(program, image.user))
                containers.import_image(archive, paths)


@dataclass(frozen=True, slots=True)
class Composed:
    """An image's three blobs; each is named by its digest.

    Attributes:
        config: what runs, as whom.
        layer: uncompressed tar.
        manifest: names the two others.
    """

    config: bytes
    layer: bytes
    manifest: bytes


def compose(program: Path, user: str) -> Composed:
    """Make an image that holds one static program at its root and runs it as `uid:gid`."""
    layer = _layer(program)
    config = _json(
        {
            "architecture": ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}"], "User": user, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        }
    )
    return Composed(config, layer, manifest)


def write_archive(archive: Path, name: str, image: Composed) -> None:
    """Write an OCI archive of one image under its full name."""
    described = _descriptor(MANIFEST_TYPE, image.manifest)
    index = _json({"schemaVersion": 2, "manifests": [{**described, "annotations": {"io.containerd.image.name": name}}]})
    with tarfile.open(archive, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", index)
        for blob in (image.config, image.layer, image.manifest):
            _add(tar, f"blobs/{digest(blob).replace(':', '/')}", blob)


def _layer(program: Path) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        _add(tar, program.name, program.read_bytes(), mode=0o755)
    return content.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = mode
    tar.addfile(entry, io.BytesIO(data))


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def digest(data: bytes) -> str:
    """Name a blob as images do."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}
