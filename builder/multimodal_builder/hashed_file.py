"""A file that is hashed and written at the same time, past the page cache.

Weights are far larger than memory and nobody reads them back from it: each page that the kernel would keep of them must
be found, copied to and written back, which costs more than everything else here, and pushes other files out. So whole
blocks go from here to the disk (`O_DIRECT`), where the file system can do that. What is no whole block, as the ends of
files and small files, goes the common way.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self

BLOCK_BYTES: Final = 16 * 2**20
"""Most bytes that are written at once: disks want many at a time, and handing them over costs little beside them."""
BLOCKS: Final = 3
"""One is filled, one is hashed, one is written."""
ALIGNMENT: Final = 4096
"""Of places in the file and in memory, for `O_DIRECT`: no disk in use has larger sectors."""


class _Block(NamedTuple):
    """A block that is under way."""

    memory: memoryview
    hashed: Future[None]
    written: Future[None]


class HashedFile:
    """Takes bytes in order. Whatever happens, no thread is left behind when the block of `with` has ended."""

    def __init__(self, descriptor: int) -> None:
        """Begin.

        Args:
            descriptor: Of a new file; stays open.
        """
        self._descriptor = descriptor
        self._digest = hashlib.sha256()
        self._threads = ExitStack()
        # Threads start with the first block: small files have none.
        self._hashing = self._threads.enter_context(ThreadPoolExecutor(1, "hash-output"))
        self._writing = self._threads.enter_context(ThreadPoolExecutor(1, "write-output"))
        self._under_way: deque[_Block] = deque()
        self._memory = _memory()
        self._filled = 0
        self.size = 0
        """Bytes that were written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._threads:
            if error is None:
                self._finish()

    def hexdigest(self) -> str:
        """Give the SHA-256 of all bytes."""
        return self._digest.hexdigest()

    def write(self, data: bytes | memoryview, /) -> None:
        """Append; the bytes may be changed as soon as this returns.

        Raises:
            OSError: of these or of earlier bytes.
        """
        view = memoryview(data)
        for start in range(0, len(view), BLOCK_BYTES):
            part = view[start : start + BLOCK_BYTES]
            self.room(len(part))[:] = part

    def room(self, size: int, /) -> memoryview:
        """Append bytes that the caller puts there before it asks for anything else.

        Args:
            size: At most `BLOCK_BYTES`.

        Returns:
            Where to put them, all of them.

        Raises:
            OSError: of earlier bytes.
        """
        if self._filled + size > len(self._memory):
            self._hand_over()
        start, self._filled = self._filled, self._filled + size
        return self._memory[start : self._filled]

    def _hand_over(self) -> None:
        """Hash and write what there is but for the last part of a sector, which begins the next block."""
        if self.size == 0 and not self._under_way:
            self._set_direct(wanted=True)
        memory, filled = self._memory, self._filled
        whole = memory[: filled - filled % ALIGNMENT]
        block = _Block(memory, self._hashing.submit(self._digest.update, whole), self._writing.submit(self._put, whole))
        self._under_way.append(block)
        self._memory = _memory() if len(self._under_way) < BLOCKS else self._oldest()
        self._filled = filled - len(whole)
        self._memory[: self._filled] = memory[len(whole) : filled]

    def _oldest(self) -> memoryview:
        """Wait for the block that has been under way for the longest time; its memory is used again."""
        memory, hashed, written = self._under_way.popleft()
        written.result()
        hashed.result()
        return memory

    def _finish(self) -> None:
        if self._under_way and self._filled >= ALIGNMENT:
            self._hand_over()
        while self._under_way:
            self._oldest()
        self._set_direct(wanted=False)
        rest = self._memory[: self._filled]
        self._digest.update(rest)
        self._put(rest)

    def _put(self, view: memoryview) -> None:
        while view:
            try:
                done = os.write(self._descriptor, view)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._set_direct(wanted=False):
                    raise
                continue
            # What the page cache got after all: the disk begins with it now, so that little is left for the end.
            os.posix_fadvise(self._descriptor, self.size, done, os.POSIX_FADV_DONTNEED)
            self.size += done
            view = view[done:]

    def _set_direct(self, *, wanted: bool) -> bool:
        """Choose the way to the disk, where the file system leaves a choice; tell whether that changed anything."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        changed = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
        with suppress(OSError):
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, changed)
        return changed != flags


def _memory() -> memoryview:
    """Find memory for a block, and for the part of a sector that the one before left."""
    return memoryview(mmap.mmap(-1, BLOCK_BYTES + ALIGNMENT))
