"""What each image is made of, and the digest that names it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
TAG_LENGTH: Final = 16


@dataclass(frozen=True, slots=True)
class Image:
    """One image.

    Attributes:
        name: without registry and tag.
        containerfile: relative to the source tree.
        parent: the image under it; None stands for the base.
        locks: lock files that it installs, relative to the source tree.
        has_project: whether the project's wheel is in it.
    """

    name: str
    containerfile: str
    parent: Image | None
    locks: tuple[str, ...] = ()
    has_project: bool = False

    def files(self, wheel: Path) -> list[Path]:
        """List what its build reads beside the Containerfile."""
        found = [ROOT / lock for lock in self.locks]
        if self.locks:
            found.append(ROOT / "images" / "install")
        if self.has_project:
            found += [ROOT / "images" / "install-project", wheel]
        return found

    def tag(self, base: str, wheel: Path) -> str:
        """Digest everything that decides the image's content, so that equal content is built and pushed once.

        Args:
            base: identity of the base image.
            wheel: the project's wheel.
        """
        under = self.parent.tag(base, wheel) if self.parent else base
        digest = hashlib.sha256(under.encode())
        for file in (ROOT / self.containerfile, *self.files(wheel)):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()[:TAG_LENGTH]


TORCH: Final = Image("multimodal-torch", "images/torch/Containerfile", None, ("locks/modeling.txt",))
FRONT: Final = Image("multimodal-front", "images/front/Containerfile", TORCH, ("locks/front.txt",))
OPERATOR: Final = Image(
    "multimodal-operator", "operator/Containerfile", None, ("locks/operator.txt",), has_project=True
)
BUILDER: Final = Image("multimodal-builder", "builder/Containerfile", TORCH, has_project=True)
SERVER: Final = Image("multimodal-server", "server_image/Containerfile", FRONT, has_project=True)

PUBLISHED: Final = {"operator": OPERATOR, "builder": BUILDER, "server": SERVER}
