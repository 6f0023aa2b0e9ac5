"""The tiny NeVA's archives, taken apart and put together again with something wrong. No torch, no product code."""

from __future__ import annotations

import io
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

TINY: Final = Path(__file__).resolve().parents[2] / "examples" / "tiny" / "neva"
DISTRIBUTED: Final = TINY / "neva.nemo"
CLASSIC: Final = TINY / "neva_ckpt.nemo"
CLIP: Final = TINY / "clip"

CONFIG: Final = "model_config.yaml"
CKPT: Final = "model_weights.ckpt"

# libyaml's are ten times as fast, and hundreds of tests change a key.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Final = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass
class Archive:
    """Members by name, in order; `extra` are headers that tarfile would not make by itself."""

    members: dict[str, bytes]
    extra: list[tarfile.TarInfo] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Archive:
        with tarfile.open(path) as archive:
            files = [member for member in archive if member.isfile()]
            return cls({member.name.removeprefix("./"): archive.extractfile(member).read() for member in files})  # type: ignore[union-attr]

    def config(self) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.load(self.members[CONFIG], Loader=_LOADER)  # noqa: S506 (a safe one)
        return loaded

    def set_config(self, key: str, value: object) -> Archive:
        """Set `a.b.c`; the value `...` removes the key."""
        document = self.config()
        *path, last = key.split(".")
        section = document
        for part in path:
            section = section[part]
        if value is ...:
            del section[last]
        else:
            section[last] = value
        return self.replace_config(document)

    def replace_config(self, document: dict[str, Any]) -> Archive:
        self.members[CONFIG] = yaml.dump(document, Dumper=_DUMPER).encode()
        return self

    def to_bytes(self) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:") as archive:
            for name, content in self.members.items():
                header = tarfile.TarInfo(f"./{name}")
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
            for header in self.extra:
                archive.addfile(header)
        return packed.getvalue()

    def write(self, folder: Path, name: str = "model.nemo") -> Path:
        """Write the archive, with the tower's folder beside it."""
        shutil.copytree(CLIP, folder / "clip", dirs_exist_ok=True)
        path = folder / name
        path.write_bytes(self.to_bytes())
        return path


def link(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    """Make a header of a member that is no file."""
    header = tarfile.TarInfo(name)
    header.type = kind
    header.linkname = target
    return header
