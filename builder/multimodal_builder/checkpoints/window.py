"""Random access to a range of bytes of a file: how a member of an archive is read where it lies."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from multimodal_builder.checkpoints.errors import unreadable, unsafe

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

SMALL_READ: Final = 256 * 2**20
"""Most bytes of an index, a pickle or a configuration that are held at once; tensors are read in their own way."""


class ByteFile:
    """An open file that is read at given offsets; threads and processes may share it, there is no position."""

    def __init__(self, descriptor: int, at: str) -> None:
        self._descriptor = descriptor
        self.at = at
        self.size = os.fstat(descriptor).st_size
        """Bytes, when it was opened."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer.

        Raises:
            ProductError: the file ends before the buffer is full.
        """
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            if count == 0:
                raise unreadable(self.at, f"it ends at byte {offset + done}, but goes on to {offset + len(buffer)}")
            done += count

    def window(self, at: str) -> Window:
        """Give the whole file as a window."""
        return Window(self, 0, self.size, at)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Readable(Protocol):
    """A file that is read at given offsets."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer.

        Raises:
            ProductError: the file ends before the buffer is full.
        """


@dataclass(frozen=True, slots=True)
class Window:
    """`size` bytes of a file from `start` on; nothing outside them can be read through it."""

    file: Readable
    start: int
    size: int
    at: str
    """What to call it in an error."""

    def part(self, offset: int, size: int, at: str) -> Window:
        """Narrow it.

        Raises:
            ProductError: the part is not inside.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise unreadable(
                at, f"its index places {size} bytes at offset {offset} of a file of {self.size} bytes: it is truncated"
            )
        return Window(self.file, self.start + offset, size, at)

    def read_into(self, buffer: memoryview) -> None:
        """Fill a buffer as large as the window."""
        if len(buffer) != self.size:
            raise ValueError(f"a buffer of {len(buffer)} bytes for a window of {self.size}")
        self.file.read_into(self.start, buffer)

    def read(self, limit: int = SMALL_READ) -> bytes:
        """Read all of it.

        Raises:
            ProductError: there is more than `limit`.
        """
        if self.size > limit:
            raise unsafe(self.at, f"{self.size} bytes, where at most {limit} are reasonable")
        buffer = bytearray(self.size)
        self.read_into(memoryview(buffer))
        return bytes(buffer)


class WindowReader(io.RawIOBase):
    """A window as a seekable file, for the standard library's archive readers; refuses to read much at once."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._window = window
        self._position = 0

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Give the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position; beyond the end nothing is read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._window.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes."""
        left = max(0, self._window.size - self._position)
        count = left if size is None or size < 0 else min(size, left)
        data = self._window.part(self._position, count, self._window.at).read() if count else b""
        self._position += count
        return data
