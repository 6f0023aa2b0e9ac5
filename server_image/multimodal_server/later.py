"""What no client need wait for: it is done behind the answers."""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LOG: Final = logging.getLogger(__name__)

MAX_WAITING: Final = 1024
"""Beyond it whoever gives more waits: a log that nobody reads does not fill the memory."""
SETTLE_SECONDS: Final = 5.0
"""Nobody waits longer: neither a page of metrics nor the end of the server hangs on a log that nobody takes."""


class Later:
    """Does work in a thread of its own, in the order in which it was given."""

    def __init__(self) -> None:
        """Begin."""
        # Not queue.Queue: the collector may end an abandoned request inside its `put`, and that puts, too.
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="later", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], None]) -> None:
        """Do it soon."""
        self._waiting.put(work)
        if self._waiting.qsize() > MAX_WAITING and threading.current_thread() is not self._thread:
            self.settle()

    def settle(self) -> None:
        """Wait until all is done that was given before, or for `SETTLE_SECONDS`."""
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
