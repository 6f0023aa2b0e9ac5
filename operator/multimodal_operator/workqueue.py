"""One queue of keys: a key waits once, is worked on by one worker at a time, and backs off when it fails."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from multimodal_operator import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_BACKOFF: Final = 0.5
LONGEST_BACKOFF: Final = 60.0
"""Seconds between attempts at a key that keeps failing."""


class WorkQueue:
    """Keys with the time at which each is due, on a clock in seconds (the event loop's)."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or asyncio.get_running_loop().time
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        self._busy: set[str] = set()
        self._failures: dict[str, int] = defaultdict(int)
        self._changed = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._due)

    async def add(self, key: str, delay: float = 0.0) -> None:
        """Make a key due after `delay` seconds, unless it is due earlier anyway."""
        due = self._clock() + delay
        if self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        metrics.QUEUE_DEPTH.set(len(self._due))
        async with self._changed:
            self._changed.notify()

    async def take(self) -> str:
        """Wait for a due key that nobody works on; the caller calls `done` or `failed` for it."""
        async with self._changed:
            while True:
                key, wait = self._next()
                if key is not None:
                    self._changed.notify()  # the next worker waits for what is due next
                    return key
                try:
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    async def done(self, key: str, look_again: float | None) -> None:
        """End the work on a key; it comes back after `look_again` seconds, or when it is added."""
        self._failures.pop(key, None)
        await self._free(key)
        if look_again is not None:
            await self.add(key, look_again)

    async def failed(self, key: str) -> float:
        """End the work on a key with an error; it comes back later each time. Gives the seconds."""
        self._failures[key] += 1
        spread = 0.75 + random.random() / 2  # noqa: S311 -- no secret
        delay: float = min(FIRST_BACKOFF * 2 ** min(self._failures[key] - 1, 16), LONGEST_BACKOFF) * spread
        await self._free(key)
        await self.add(key, delay)
        return delay

    def _next(self) -> tuple[str | None, float | None]:
        now = self._clock()
        waiting: list[tuple[float, int, str]] = []
        found: str | None = None
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            due, _order, key = entry
            if self._due.get(key) != due:
                continue  # an earlier time took its place
            if key in self._busy:
                waiting.append(entry)
                continue
            found = key
            del self._due[key]
            self._busy.add(key)
            metrics.QUEUE_SECONDS.observe(now - due)
            break
        # A key that is worked on is looked at again when it is free: that wakes us without a timeout.
        wait = max(self._heap[0][0] - now, 0.0) if self._heap else None
        for entry in waiting:
            heapq.heappush(self._heap, entry)
        metrics.QUEUE_DEPTH.set(len(self._due))
        return found, wait

    async def _free(self, key: str) -> None:
        self._busy.discard(key)
        async with self._changed:
            self._changed.notify()
