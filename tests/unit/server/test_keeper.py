"""Triton is started again when it ends, a few times."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from typing import cast

import pytest

from multimodal_api.errors import Failure, ProductError
from multimodal_api.reasons import Reason
from multimodal_server.keeper import MENDS, SPAN_SECONDS, Keeper, Published, Unpublished
from multimodal_server.triton import Triton

WAIT_SECONDS = 60


def failure(problem: str) -> Failure:
    return Failure(reason=Reason.SERVER_FAILED, at="triton", problem=problem, remedy="see its log lines above")


@dataclass
class FakeTriton:
    """Counts what is done to it."""

    refuses: int = 0
    """How many of the next starts fail."""
    alive: bool = True
    done: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.done.append("start")
        if self.refuses:
            self.refuses -= 1
            raise ProductError(Reason.SERVER_FAILED, at="triton", problem="the process ended", remedy="see its log")
        self.alive = True

    def forget(self) -> None:
        self.done.append("forget")

    def is_alive(self) -> bool:
        return self.alive


@dataclass
class Bench:
    """A keeper with what is around it."""

    triton: FakeTriton = field(default_factory=FakeTriton)
    told: queue.SimpleQueue[Published | Unpublished] = field(default_factory=queue.SimpleQueue)
    now: float = 1000.0
    publishes: int = 0
    counted: int = 0
    refusal: str | None = None
    keeper: Keeper = field(init=False)

    def __post_init__(self) -> None:
        self.keeper = Keeper(
            cast("Triton", self.triton), self.publish, self.told.put, self.count, clock=lambda: self.now
        )

    def count(self) -> None:
        self.counted += 1

    def publish(self) -> None:
        self.publishes += 1
        if self.refusal is not None:
            raise OSError(self.refusal)

    def start(self) -> Published | Unpublished:
        self.keeper.start()
        return self.told.get(timeout=WAIT_SECONDS)

    def end_and_mend(self) -> Failure | None:
        self.triton.alive = False
        lost = self.keeper.check()
        assert lost is not None
        return self.keeper.mend(lost)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_model_is_offered_again_to_the_triton_that_takes_the_place_of_one_that_ended(bench: Bench) -> None:
    assert bench.start() == Published()
    assert bench.keeper.check() is None
    assert bench.end_and_mend() is None
    assert bench.told.get(timeout=WAIT_SECONDS) == Published()
    assert bench.triton.done == ["start", "forget", "start"]
    assert bench.publishes == 2
    assert bench.counted == 1
    assert bench.keeper.check() is None


def test_a_model_that_is_not_taken_is_told(bench: Bench) -> None:
    bench.refusal = "connection closed"
    told = bench.start()
    assert isinstance(told, Unpublished)
    assert "connection closed" in told.failure.problem
    assert bench.keeper.check() is None, "what was told is not said twice"


def test_too_many_ends_within_the_span_are_the_last_one_s_failure(bench: Bench) -> None:
    bench.start()
    for _ in range(MENDS):
        assert bench.end_and_mend() is None
        bench.told.get(timeout=WAIT_SECONDS)
    lasting = bench.end_and_mend()
    assert lasting == failure("Triton's process ended")
    assert bench.triton.done.count("start") == 1 + MENDS


def test_ends_that_are_long_ago_do_not_count(bench: Bench) -> None:
    bench.start()
    for _ in range(3 * MENDS):
        assert bench.end_and_mend() is None
        bench.told.get(timeout=WAIT_SECONDS)
        bench.now += SPAN_SECONDS / MENDS + 1


def test_a_start_that_fails_counts_as_an_end(bench: Bench) -> None:
    bench.start()
    bench.triton.refuses = MENDS
    lasting = bench.end_and_mend()
    assert lasting is not None
    assert lasting.problem == "the process ended"
    assert bench.triton.done.count("start") == 1 + MENDS
