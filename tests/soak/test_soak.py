"""Six servers, and many people who ask, go away and err, for half an hour: nothing is lost, stuck, wrong or leaked."""

from __future__ import annotations

import collections
import re
import signal
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.soak.conftest import Report
from tests.soak.traffic import End, Served, User
from tests.triton.conftest import END_SECONDS

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]

USERS = 64
SAMPLE_SECONDS = 5
GROWTH = 1.05
SLACK_MIB = 16
"""A process may have grown by a twentieth and this much: what allocators of a busy process keep goes up and down."""
PARTS = ("front", "worker", "triton")
GAUGES = ("multimodal_running_requests", "multimodal_waiting_requests", "multimodal_kv_positions_used")
SETTLE_SECONDS = 60


class Book:
    """What happened, by minute."""

    def __init__(self, failed: Callable[[str], None]) -> None:
        """Begin; `failed` is told of each request that fails."""
        self._failed = failed
        self._lock = threading.Lock()
        self.ends: collections.Counter[End] = collections.Counter()
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self.kinds: collections.Counter[tuple[str, End]] = collections.Counter()

    def note(self, kind: str, end: End, seconds: float, said: str) -> None:
        with self._lock:
            self.ends[end] += 1
            self.kinds[kind.partition(": ")[2], end] += 1
            if end is End.ANSWERED:
                self.seconds.append(seconds)
            if end is End.FAILED:
                self.failures.append(f"{time.strftime('%X')} {kind}: {said}")
                self._failed(self.failures[-1])

    def turn(self) -> tuple[collections.Counter[End], list[float]]:
        """Give what happened since the last call."""
        with self._lock:
            turned = self.ends, self.seconds
            self.ends, self.seconds = collections.Counter(), []
        return turned


class Memory:
    """MiB of every server's parts, as time goes on. A process that is not there any more is an error."""

    def __init__(self, served: list[Served]) -> None:
        self._processes = {
            f"{one.family} {part}": pids
            for one in served
            for part, pids in zip(
                PARTS, ([one.server.process.pid], [one.server.worker()], one.server.triton(words="")), strict=True
            )
        }
        self.seen: dict[str, list[float]] = {name: [] for name in self._processes}

    def look(self) -> None:
        for name, pids in self._processes.items():
            self.seen[name].append(sum(map(_resident, pids)))

    def total(self, part: str) -> float:
        return sum(values[-1] for name, values in self.seen.items() if name.endswith(part))

    def allowed(self, name: str, early: float) -> float:
        """Give what its processes may hold in the end that held so much early."""
        return early * GROWTH + SLACK_MIB * len(self._processes[name])

    def growth(self) -> dict[str, tuple[float, float]]:
        """The median of each process after a sixth of the time until a third, and in the last sixth."""
        spans = {}
        for name, values in self.seen.items():
            sixth = max(1, len(values) // 6)
            spans[name] = statistics.median(values[sixth : 2 * sixth]), statistics.median(values[-sixth:])
        return spans


def _resident(pid: int) -> float:
    """MiB that a process holds."""
    (found,) = re.findall(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found) / 1024


def metric(one: Served, name: str) -> float:
    with urllib.request.urlopen(one.server.metrics, timeout=30) as response:  # noqa: S310 -- our own server
        page = response.read().decode()
    (found,) = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
    return float(found)


def test_nothing_is_lost_stuck_wrong_or_leaked(served: list[Served], minutes: int, report: Report) -> None:
    tell = report.tell
    for one in served:
        one.listen()
    tell(f"{time.strftime('%X')} all are ready and have answered alone; {USERS} users ask for {minutes} minutes")
    book, memory = Book(report.failed), Memory(served)
    # As many for each server: else most would wait for the slowest one, and the others have nothing to do.
    users = [User(served[seed % len(served)], seed, book.note) for seed in range(USERS)]
    for user in users:
        user.start()
    soak(minutes, book, memory, report)
    for user in users:
        user.stop.set()
    for user in users:
        user.join(SETTLE_SECONDS + END_SECONDS)
    assert not any(user.is_alive() for user in users), "a request never ended"

    tell(f"\n{'':24}" + "".join(f"{end:>10}" for end in End))
    for kind in sorted({kind for kind, _ in book.kinds}):
        tell(f"{kind:24}" + "".join(f"{book.kinds[kind, end]:10}" for end in End))
    tell(f"\n{'MiB':20}{'early':>8}{'late':>8}")
    for name, (early, late) in memory.growth().items():
        tell(f"{name:20}{early:8.1f}{late:8.1f}")
    assert book.failures == []
    settle(served)
    for one in served:
        before = dict(one.quiet)
        one.listen()
        assert one.quiet == before, "it has changed"
    grown = {name: span for name, span in memory.growth().items() if span[1] > memory.allowed(name, span[0])}
    assert grown == {}
    for one in served:
        stop(one)


def soak(minutes: int, book: Book, memory: Memory, report: Report) -> None:
    """Let it go on, with a line for every minute, and one of the memory of each part."""
    tell = report.tell
    columns = ("minute", *End, "median", "99 %", "longest", *PARTS)
    tell("\n" + "".join(f"{column:>10}" for column in columns) + "   (requests; s; MiB of all six)")
    begun = time.monotonic()
    for minute in range(1, minutes + 1):
        while (left := begun + 60 * minute - time.monotonic()) > 0:
            time.sleep(min(left, SAMPLE_SECONDS))
            memory.look()
        ends, seconds = book.turn()
        numbers = [minute, *(ends[end] for end in End)]
        percentiles = statistics.quantiles(seconds, n=100)
        tell(
            "".join(f"{number:10}" for number in numbers)
            + "".join(f"{each:10.2f}" for each in (percentiles[49], percentiles[98], max(seconds)))
            + "".join(f"{memory.total(part):10.0f}" for part in PARTS)
        )
        report.keep(
            "memory.txt", f"{minute} " + ", ".join(f"{part} {mib[-1]:.0f}" for part, mib in memory.seen.items())
        )
        assert len(book.failures) < USERS, book.failures[:10]


def settle(served: list[Served]) -> None:
    """See that nothing is left where all who asked have gone."""
    ends = time.monotonic() + SETTLE_SECONDS
    while left := {(one.family, gauge): value for one in served for gauge in GAUGES if (value := metric(one, gauge))}:
        assert time.monotonic() < ends, left
        time.sleep(1)


def stop(one: Served) -> None:
    """End a server as Kubernetes does, without the wait for others to send their requests elsewhere."""
    for _ in range(2):
        one.server.process.send_signal(signal.SIGTERM)
        time.sleep(1)
    assert one.server.process.wait(END_SECONDS) == 0, one.family
