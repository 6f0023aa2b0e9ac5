"""Files of an engine: written once, hashed as they are written, on the disk before anybody is told of them."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from multimodal_api.engine import EngineFile
from multimodal_builder.hashed_file import HashedFile

if TYPE_CHECKING:
    from collections.abc import Iterator


class Sink(Protocol):
    """Takes bytes in order."""

    def write(self, data: bytes | memoryview, /) -> None:
        """Append; the bytes may be changed as soon as this returns."""

    def room(self, size: int, /) -> memoryview:
        """Append bytes, not many, that the caller puts there before it asks for anything else."""


class FileLog:
    """The files of one folder tree, as they were written."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.files: list[EngineFile] = []

    @contextmanager
    def create(self, path: Path) -> Iterator[Sink]:
        """Write a new file; when the block ends it is on the disk and in the list."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o664)
        try:
            with HashedFile(descriptor) as file:
                yield file
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        relative = path.relative_to(self._root).as_posix()
        self.files.append(EngineFile(path=relative, size=file.size, sha256=file.hexdigest()))

    def write(self, path: Path, content: bytes | dict[str, Any]) -> None:
        """Write a small file; an object is written as JSON."""
        data = content if isinstance(content, bytes) else json.dumps(content, indent=2, ensure_ascii=False).encode()
        with self.create(path) as sink:
            sink.write(data)


def sync_folder(path: Path) -> None:
    """Put a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Put the entries of a folder and of all folders in it on the disk."""
    for folder, _, _ in os.walk(root):
        sync_folder(Path(folder))
