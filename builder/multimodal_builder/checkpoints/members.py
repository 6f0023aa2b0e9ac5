"""A checkpoint's files under the names they have in it, whether they lie in an archive or in a folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from multimodal_builder.checkpoints.errors import unreadable, unsafe
from multimodal_builder.checkpoints.window import ByteFile, Window

if TYPE_CHECKING:
    from collections.abc import Collection


class Members(Protocol):
    """The files of one checkpoint. Nothing is ever extracted: a member is a window on the file it lies in."""

    @property
    def at(self) -> str:
        """What to call the checkpoint in an error."""

    def names(self) -> Collection[str]:
        """Give the names of all files, `/` between parts, without a leading `./`."""

    def open(self, name: str) -> Window:
        """Give a file's bytes.

        Raises:
            ProductError: there is no such file.
        """

    def close(self) -> None:
        """Close what is open."""


def clean_name(name: str, at: str) -> str:
    """Normalise a member's name.

    Returns:
        The name without `.` parts; empty for the root itself.

    Raises:
        ProductError: the name is absolute, has a `..` part or a NUL character.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise unsafe(f"{at}: {name!r}", "the name of this member leads outside the archive")
    return str(path) if path.parts else ""


class DirectoryMembers:
    """An unpacked checkpoint."""

    def __init__(self, root: Path) -> None:
        self.at = root.name
        self._root = root
        self._names = frozenset(self._walk(root))

    def names(self) -> Collection[str]:
        """Give the names of all regular files."""
        return self._names

    def open(self, name: str) -> Window:
        """Give a file's bytes."""
        at = f"{self.at}: {name}"
        if name not in self._names:
            raise unreadable(at, "the file is missing")
        return _MemberFile(self._root / name, at).window(at)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _walk(self, root: Path) -> list[str]:
        found: list[str] = []
        for folder, folders, files in os.walk(root, onerror=_raise):
            for name in [*folders, *files]:
                path = Path(folder, name)
                relative = path.relative_to(root).as_posix()
                mode = path.lstat().st_mode
                if stat.S_ISREG(mode):
                    found.append(relative)
                elif not stat.S_ISDIR(mode):
                    raise unsafe(f"{self.at}: {relative}", "this member is a link or a device")
        return found


class _MemberFile:
    """A file that is open only while it is read: a zarr checkpoint has more files than a process may hold open."""

    def __init__(self, path: Path, at: str) -> None:
        self._path = path
        self.at = at
        self.size = path.lstat().st_size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise unreadable(self.at, f"the file changed while it was being read: {error.strerror}") from error
        with ByteFile(descriptor, self.at) as file:
            file.read_into(offset, buffer)

    def window(self, at: str) -> Window:
        """Give the whole file as a window."""
        return Window(self, 0, self.size, at)


def _raise(error: OSError) -> None:
    raise error
