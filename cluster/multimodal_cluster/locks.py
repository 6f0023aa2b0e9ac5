"""One run at a time."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from multimodal_cluster.errors import ClusterError
from multimodal_cluster.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def locked(file: Path, *, seconds: float, what: str) -> Iterator[None]:
    """Hold a lock that ends with this process, waiting for another holder.

    Raises:
        ClusterError: the other holder was not done in time.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as held:

        def taken() -> bool:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        if not wait_until(taken, seconds=seconds, every=0.5):
            raise ClusterError(what, f"another run was still at it after {seconds:g}s", f"end the holder of {file}")
        yield
