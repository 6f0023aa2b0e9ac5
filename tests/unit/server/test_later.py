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

    later.do(first)
    for number in range(1, 100):
        later.do(lambda number=number: done.append(number))  # type: ignore[misc]
    assert begun.wait(10)
    assert done == []
    go_on.set()
    later.settle()
    assert done == list(range(100))


def test_work_that_fails_is_told_of_and_hinders_no_other(caplog: pytest.LogCaptureFixture) -> None:
    later, done = Later(), list[str]()
    later.do(lambda: {}["x"])
    later.do(lambda: done.append("next"))
    later.settle()
    assert done == ["next"]
    assert "KeyError" in caplog.text


def test_nobody_waits_for_ever_for_work_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.05)
    later, go_on, waited = Later(), threading.Event(), threading.Event()

    def settle() -> None:
        later.settle()
        waited.set()

    later.do(lambda: go_on.wait(60))  # type: ignore[arg-type]
    threading.Thread(target=settle, daemon=True).start()
    assert waited.wait(10)
    go_on.set()
