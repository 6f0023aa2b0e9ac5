"""Streams over Triton whose client went away: `triton_stream.py` tells of them by number, and they are ended here."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONGEST: Final = 32
"""Of a number, in bytes."""


class Gone:
    """Hears which streams nobody reads any more."""

    def __init__(self, path: Path) -> None:
        """Listen.

        Args:
            path: of a socket, which is made.
        """
        self._tasks: dict[int, asyncio.Task[object]] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        threading.Thread(target=self._hear, name="gone", daemon=True).start()

    @contextmanager
    def cancels(self, number: int) -> Iterator[None]:
        """Cancel the current task when the stream of this number is gone; that ends the block, and no more."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- PyTriton runs its callables in tasks
        self._tasks[number] = task
        try:
            yield
        except asyncio.CancelledError:
            task.uncancel()
        finally:
            del self._tasks[number]

    def close(self) -> None:
        """Hear no more; what runs ends by itself."""
        self._socket.shutdown(socket.SHUT_RD)

    def _hear(self) -> None:
        while number := self._socket.recv(LONGEST):
            task = self._tasks.get(int(number))
            if task is not None:
                task.get_loop().call_soon_threadsafe(self._cancel, task)

    def _cancel(self, task: asyncio.Task[object]) -> None:
        """Cancel once: the stream is told of until it has ended."""
        if task in self._tasks.values() and not task.cancelling():
            task.cancel()
