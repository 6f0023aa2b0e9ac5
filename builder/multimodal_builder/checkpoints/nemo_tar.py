"""`.nemo` archives: a tar, read by its index, without writing any of it to disk."""

from __future__ import annotations

import gzip
import os
import tarfile
import tempfile
import zlib
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from multimodal_builder.checkpoints.errors import unreadable, unsafe
from multimodal_builder.checkpoints.members import clean_name
from multimodal_builder.checkpoints.window import ByteFile, Window, WindowReader

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

GZIP_MAGIC: Final = b"\x1f\x8b"
GZIP_RATIO: Final = 32
"""Most that a gzip archive may grow. Weights shrink to no less than a half; a bomb grows a thousandfold."""
MAX_MEMBERS: Final = 1_000_000
_COPY: Final = 2**20

# What the standard library's reader raises on damaged headers, beside its own errors.
_DAMAGED: Final = (tarfile.TarError, ValueError, OverflowError, EOFError, KeyError, RecursionError)


class TarMembers:
    """A plain or gzip-compressed tar."""

    def __init__(self, path: Path) -> None:
        """Read the index.

        Raises:
            ProductError: not a tar, truncated, or with members that are links, devices, duplicates or lead outside.
        """
        self.at = path.name
        self._file = _open_plain(path)
        try:
            self._index = _read_index(self._file, self.at)
        except BaseException:
            self._file.close()
            raise

    def names(self) -> Collection[str]:
        """Give the names of all regular files, in the archive's order."""
        return self._index.keys()

    def open(self, name: str) -> Window:
        """Give a file's bytes."""
        try:
            return self._index[name]
        except KeyError:
            raise unreadable(f"{self.at}: {name}", "the archive has no such member") from None

    def close(self) -> None:
        """Close the archive."""
        self._file.close()


def _open_plain(path: Path) -> ByteFile:
    """Open an archive; gzip is undone into a file without a name, as a compressed stream cannot be read at an offset.

    Raises:
        ProductError: the gzip stream is damaged, or grows beyond reason.
    """
    file = ByteFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path.name)
    whole = file.window(path.name)
    if whole.part(0, min(len(GZIP_MAGIC), file.size), path.name).read() != GZIP_MAGIC:
        return file
    limit = file.size * GZIP_RATIO
    file.close()
    with tempfile.TemporaryFile() as spool:
        try:
            with gzip.open(path, "rb") as compressed:
                while chunk := compressed.read(_COPY):
                    spool.write(chunk)
                    if spool.tell() > limit:
                        raise unsafe(path.name, f"unpacked it is more than {GZIP_RATIO} times as large")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise unreadable(path.name, f"the gzip stream is damaged: {error}") from error
        spool.flush()
        return ByteFile(os.dup(spool.fileno()), path.name)


def _read_index(file: ByteFile, at: str) -> dict[str, Window]:
    """Read all headers, in order; member contents are skipped."""
    whole = file.window(at)
    index: dict[str, Window] = {}
    try:
        # Headers are small: WindowReader refuses the large reads that a forged size would cause.
        with tarfile.open(fileobj=cast("BinaryIO", WindowReader(whole)), mode="r:") as archive:
            end = 0
            while (member := archive.next()) is not None:
                if member.size < 0 or member.offset_data <= end:
                    raise unreadable(f"{at}: {member.name!r}", "the size of this member is not a size")
                end = member.offset_data
                name = clean_name(member.name, at)
                if _is_folder(member, f"{at}: {name}"):
                    continue
                if name in index or len(index) == MAX_MEMBERS:
                    raise unsafe(f"{at}: {name}", "two members have this name, or there are too many members")
                index[name] = whole.part(member.offset_data, member.size, f"{at}: {name}")
            _check_end(whole, archive.offset)
    except _DAMAGED as error:
        raise unreadable(at, f"not a tar archive, or a damaged one: {error}") from error
    return index


def _is_folder(member: tarfile.TarInfo, at: str) -> bool:
    if member.isdir():
        return True
    if not member.isreg() or member.issparse():
        raise unsafe(at, "this member is a link, a device or a sparse file")
    return False


def _check_end(whole: Window, offset: int) -> None:
    """Require the block of zeros behind the last member: without it, members may be missing."""
    left = whole.size - offset
    block = whole.part(offset, min(tarfile.BLOCKSIZE, left), whole.at).read() if left > 0 else b""
    if block != bytes(tarfile.BLOCKSIZE):
        raise unreadable(whole.at, f"the archive has no end mark at byte {offset}: it is truncated or damaged there")
