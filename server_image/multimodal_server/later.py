"""What no client need wait for: it is done behind the answers."""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    Work = Callable[[], None]

LOG: Final = logging.getLogger(__name__)

MAX_LINES: Final = 1024
"""That wait: beyond it they are left out. A log that nobody takes neither fills the memory nor holds a request up."""
SETTLE_SECONDS: Final = 5.0
"""Nobody waits longer: neither a page of metrics nor the end of the server."""


class Later:
    """Counts in one thread, and writes log lines in another: whoever takes the log may be slow."""

    def __init__(self) -> None:
        """Begin."""
        self._counts = _Queue("counts")
        self._lines = _Queue("lines")
        self._left_out = 0

    def count(self, work: Work) -> None:
        """Do it soon."""
        self._counts.put(work)

    def say(self, line: Work) -> None:
        """Write a log line soon, or none where too many wait."""
        if self._lines.size() < MAX_LINES:
            self._lines.put(line)
            return
        self._left_out += 1
        if self._left_out == 1:  # the first one takes the last place
            self._lines.put(self._tell)

    def settle(self) -> None:
        """Wait until all is counted that was given before, or for `SETTLE_SECONDS`."""
        self._counts.settle()

    def flush(self) -> None:
        """Wait until all lines are written that were given before, or for `SETTLE_SECONDS`."""
        self._lines.settle()

    def _tell(self) -> None:
        left_out, self._left_out = self._left_out, 0
        if left_out:  # else two threads have told at once
            LOG.warning("%d lines of this log were left out here: those before them were not taken in time", left_out)


class _Queue:
    """Does work in a thread of its own, in the order in which it was given."""

    def __init__(self, name: str) -> None:
        # Not queue.Queue: the collector may end an abandoned request inside its `put`, and that puts, too.
        self._waiting: queue.SimpleQueue[Work] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def put(self, work: Work) -> None:
        self._waiting.put(work)

    def size(self) -> int:
        return self._waiting.qsize()

    def settle(self) -> None:
        done = threading.Event()
        self._waiting.put(done.set)
        done.wait(SETTLE_SECONDS)

    def _run(self) -> None:
        while True:
            work = self._waiting.get()
            try:
                work()
            except Exception:
                LOG.exception("what was to be done behind an answer failed")
            del work  # it may hold a request's media
