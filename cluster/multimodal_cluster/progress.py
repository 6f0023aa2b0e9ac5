"""Lines that tell a person what happens now and how long it took."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# A step that takes minutes says so often enough that nobody thinks it hangs.
HEARTBEAT_S = 20.0
# Back to the line's begin, and empty to its end.
CLEAR = "\r\x1b[K"


class Progress:
    """Prints steps with the time since the start and the time each took."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line with the time since the start."""
        print(f"{CLEAR if sys.stdout.isatty() else ''}{self._line(text)}", flush=True)

    def _line(self, text: str) -> str:
        return f"{time.monotonic() - self._start:7.1f}s  {text}"

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step, say every 20 seconds that it goes on, and say how long it took."""
        begun = time.monotonic()
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_S):
                self.say(f"{title}: still at it after {time.monotonic() - begun:.0f}s")

        if sys.stdout.isatty():  # a line that the next one replaces; a file or a pipe gets what is done
            print(f"{CLEAR}{self._line(title)} …", end="", flush=True)
        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield
        except BaseException:
            if sys.stdout.isatty():
                print(flush=True)  # the error begins on a line of its own
            raise
        finally:
            ended.set()
            heart.join()
        self.say(f"{title}: done in {time.monotonic() - begun:.1f}s")
