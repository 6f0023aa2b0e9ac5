from __future__ import annotations

import threading

import pytest

from multimodal_server import later as module
from multimodal_server.later import Later


def test_work_is_done_in_its_order_and_behind_who_gives_it() -> None:
    later, begun, go_on, done = Later(), threading.Event(), threading.Event(), list[int]()

    def first() -> None:
        begun.set()
        go_on.wait(10)
        done.append(0)

    later.count(first)
    for number in range(1, 100):
        later.count(lambda number=number: done.append(number))  # type: ignore[misc]
    assert begun.wait(10)
    assert done == []
    go_on.set()
    later.settle()
    assert done == list(range(100))


def test_work_that_fails_is_told_of_and_hinders_no_other(caplog: pytest.LogCaptureFixture) -> None:
    later, done = Later(), list[str]()
    later.count(lambda: {}["x"])
    later.count(lambda: done.append("next"))
    later.settle()
    assert done == ["next"]
    assert "KeyError" in caplog.text


def test_nobody_waits_for_ever_for_work_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.05)
    later, go_on, waited = Later(), threading.Event(), threading.Event()

    def settle() -> None:
        later.settle()
        waited.set()

    later.count(lambda: go_on.wait(60))  # type: ignore[arg-type]
    threading.Thread(target=settle, daemon=True).start()
    assert waited.wait(10)
    go_on.set()


def test_a_log_that_nobody_takes_holds_nobody_up_and_says_what_it_lacks(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LINES", 3)
    later, begun, go_on, counted = Later(), threading.Event(), threading.Event(), list[int]()
    written: list[int] = []

    def stuck() -> None:
        begun.set()
        go_on.wait(60)

    later.say(stuck)
    assert begun.wait(10)
    for number in range(10):
        later.say(lambda number=number: written.append(number))  # type: ignore[misc]
        later.count(lambda number=number: counted.append(number))  # type: ignore[misc]
    later.settle()
    assert counted == list(range(10))
    assert written == []
    go_on.set()
    later.flush()
    later.say(lambda: written.append(10))
    later.flush()
    assert written == [0, 1, 2, 10]
    assert "7 lines of this log were left out" in caplog.text
