"""How much memory Triton may take, and how little this process keeps.

In a request whose numbers stand in the JSON document itself, Triton makes room for what `shape` says before it looks at
`data`, and has no setting against it. So the kernel refuses: Triton ends, and `keeper.py` starts it again.
"""

from __future__ import annotations

import ctypes
import re
import resource
from contextlib import suppress
from pathlib import Path
from typing import Final

ROOM_BYTES: Final = 2**32
"""For the requests that Triton holds: twice the largest video that the server takes."""
ARENAS: Final = 4
"""That the allocator has for all threads. By default it has up to eight for each CPU, and every one keeps some MiB of
the media that its threads have read."""
GROUP: Final = Path("/sys/fs/cgroup")
FILES: Final = ("memory.max", "memory/memory.limit_in_bytes")
"""Where a container finds the limit of its memory: control groups of version 2, and of version 1."""

_M_ARENA_MAX: Final = -8
"""From glibc's malloc.h."""


def share_arenas() -> None:
    """Let the threads of this process share few arenas. Call it before they start; without glibc it does nothing."""
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)


def bound(process: int, room: int) -> None:
    """Let a process take so much more memory than it has.

    Of its data alone: what is reserved and never used, as the heaps of threads that Triton never starts, and what is
    shared with the processes of its models do not count.
    """
    with suppress(OSError):  # it has ended, which is told elsewhere
        status = Path(f"/proc/{process}/status").read_text()
        (now,) = re.findall(r"^VmData:\s+(\d+) kB$", status, re.MULTILINE)
        most = int(now) * 1024 + room
        resource.prlimit(process, resource.RLIMIT_DATA, (most, most))


def room(group: Path = GROUP) -> int:
    """Give the bytes that requests may take: at most half of the container's memory.

    Args:
        group: of the container.
    """
    for name in FILES:
        with suppress(OSError, ValueError):  # ValueError: the word "max"
            return min(ROOM_BYTES, int((group / name).read_text()) // 2)
    return ROOM_BYTES
