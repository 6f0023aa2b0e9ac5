"""Waits that end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(ready: Callable[[], bool], *, seconds: float, every: float = 0.1) -> bool:
    """Ask until the answer is yes or the time is over; the last answer is returned."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True
