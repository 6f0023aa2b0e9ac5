"""What Triton leaves behind: files, shared memory, and processes of its models."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path


def clear(workspace: Path) -> None:
    """Remove PyTriton's files, and the shared memory of a process of this number."""
    shutil.rmtree(workspace, ignore_errors=True)
    for segment in Path("/dev/shm").glob(f"pytrtion{os.getpid()}-*"):  # noqa: S108 -- where POSIX shared memory is
        segment.unlink(missing_ok=True)


def end_processes(workspace: Path) -> None:
    """End the processes that were started from there.

    Those of a model end when they see that Triton has ended; but not one that waits for a word of Triton's, as each
    does that is given an answer then.
    """
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended, or is none of ours
            if f"{workspace}/".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
