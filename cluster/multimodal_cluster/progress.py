"""Lines that tell a person what happens now and how long it took."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# A step that takes minutes says so often enough that nobody thinks it hangs.
HEARTBEAT_S = 20.0


class Progress:
    """Prints steps with the time since the start and the time each took."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line with the time since the start."""
        print(f"{time.monotonic() - self._start:7.1f}s  {text}", flush=True)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step, say every 20 seconds that it goes on, and say how long it took."""
        begun = time.monotonic()
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_S):
                self.say(f"{title}: still at it after {time.monotonic() - begun:.0f}s")

        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()
        self.say(f"{title}: done in {time.monotonic() - begun:.1f}s")
