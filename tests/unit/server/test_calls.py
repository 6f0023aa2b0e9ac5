"""Both ends of the socket between Triton's process and the front, without Triton."""

from __future__ import annotations

import gc
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_server import calls as calls_module
from multimodal_server import triton_calls
from multimodal_server.calls import CallServer
from multimodal_server.triton_calls import SOCKET, Calls, Frame, Waiting, receive, send, send_tensors
from multimodal_server.whole import Caller

Tensors = Mapping[str, NDArray[Any]]
Answer = Callable[[Tensors, Caller], None]
Serve = Callable[..., CallServer]

SECONDS = 10.0
TENSORS: Tensors = {
    "picture": np.arange(2 * 3 * 3, dtype=np.uint8).reshape(1, 1, 2, 3, 3),
    "number": np.array([[-7]], dtype=np.int64),
    "sound": np.linspace(0, 1, 33, dtype=np.float32)[None],
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "words": np.array([[b"what?", b"", "über\0".encode()]], dtype=object),
    "many": np.array([[str(number).encode() for number in range(3000)]], dtype=object),
    "large": np.arange(2**21, dtype=np.uint8)[None],
}


class Client:
    """Asks as Triton's process does, and remembers whether it has gone away."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.cancelled = False
        self.said: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask(self, tensors: Tensors) -> Client:
        self._calls.ask(tensors, Waiting(self.said.put, lambda: self.cancelled))
        return self

    def hear(self) -> Any:
        return self.said.get(timeout=SECONDS)


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Calls]:
    calls = Calls(tmp_path / SOCKET)
    yield calls
    calls.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a front that answers with a function, in two threads."""
    served: list[CallServer] = []

    def start(answer: Answer, threads: int = 2) -> CallServer:
        served.append(CallServer(tmp_path / SOCKET, answer, threads=threads))
        return served[-1]

    yield start
    for each in served:
        each.close()


def told(tensors: Tensors) -> list[str]:
    """Say what came, one line for each tensor."""
    return [f"{key} {tensor.dtype} {tensor.shape} {tensor.tolist()}" for key, tensor in tensors.items()]


def echo(tensors: Tensors, caller: Caller) -> None:
    caller.give(told(tensors))


def number(value: int) -> Tensors:
    return {"number": np.array([value])}


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_tensors_come_as_they_were_sent(calls: Calls, serve: Serve) -> None:
    serve(echo)
    for _ in range(2):
        assert Client(calls).ask(TENSORS).hear() == {"texts": told(TENSORS)}


def test_answers_find_their_requests_in_any_order(calls: Calls, serve: Serve) -> None:
    gates = [threading.Event() for _ in range(5)]

    def answer(tensors: Tensors, caller: Caller) -> None:
        assert gates[tensors["number"][0]].wait(SECONDS)
        echo(tensors, caller)

    serve(answer, threads=5)
    clients = [Client(calls).ask(number(value)) for value in range(5)]
    for value in (3, 0, 4, 2, 1):
        gates[value].set()
        assert clients[value].hear() == {"texts": told(number(value))}


def test_what_all_threads_are_too_busy_for_waits_for_one(calls: Calls, serve: Serve) -> None:
    gate = threading.Event()

    def answer(tensors: Tensors, caller: Caller) -> None:
        assert gate.wait(SECONDS)
        echo(tensors, caller)

    serve(answer)
    clients = [Client(calls).ask(number(value)) for value in range(9)]
    gate.set()
    assert [client.hear() for client in clients] == [{"texts": told(number(value))} for value in range(9)]


def test_few_threads_answer_what_comes_one_after_another(calls: Calls, serve: Serve) -> None:
    threads: set[int] = set()

    def answer(tensors: Tensors, caller: Caller) -> None:
        threads.add(threading.get_ident())
        echo(tensors, caller)

    serve(answer, threads=64)
    for value in range(200):
        Client(calls).ask(number(value)).hear()
    assert len(threads) < 16


def test_a_refusal_has_triton_s_code_and_our_words(calls: Calls, serve: Serve) -> None:
    def refuse(_: Tensors, _caller: Caller) -> None:
        raise ProductError(Reason.SERVER_BUSY, at="queue", problem="is \N{GRINNING FACE} full", remedy="wait")

    serve(refuse)
    said = Client(calls).ask({}).hear()
    assert said == {"code": "UNAVAILABLE", "message": "ServerBusy: queue: is \N{GRINNING FACE} full; wait"}


def test_whoever_answers_hears_that_the_client_is_gone(
    calls: Calls, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_calls, "POLL_SECONDS", 0.01)
    gone: queue.SimpleQueue[int] = queue.SimpleQueue()

    def wait(tensors: Tensors, caller: Caller) -> None:
        left = threading.Event()
        caller.when_gone(left.set)
        assert left.wait(SECONDS)
        gone.put(int(tensors["number"][0]))

    serve(wait, threads=3)
    clients = [Client(calls).ask(number(value)) for value in range(2)]
    time.sleep(0.1)
    assert gone.empty()
    for value in (1, 0):
        clients[value].cancelled = True
        assert gone.get(timeout=SECONDS) == value
        assert clients[value].hear() == calls_module.WENT_AWAY


def test_a_client_that_went_before_anybody_asked_is_gone_too(calls: Calls, serve: Serve) -> None:
    left, asked = threading.Event(), threading.Event()

    def wait(_: Tensors, caller: Caller) -> None:
        assert asked.wait(SECONDS)
        caller.when_gone(left.set)
        caller.give(["too late"])

    serve(wait)
    client = Client(calls)
    client.cancelled = True
    client.ask({})
    time.sleep(2 * triton_calls.POLL_SECONDS)
    asked.set()
    assert client.hear() == {"texts": ["too late"]}
    assert left.is_set()


def test_triton_is_not_asked_about_a_request_that_has_its_answer(
    calls: Calls, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_calls, "POLL_SECONDS", 0.001)
    serve(echo)
    wrong: list[int] = []
    for value in range(200):
        said = threading.Event()

        def is_cancelled(value: int = value, said: threading.Event = said) -> bool:
            if said.is_set():
                wrong.append(value)
            return False

        calls.ask(number(value), Waiting(lambda _, said=said: said.set(), is_cancelled))
        assert said.wait(SECONDS)
    assert not wrong


def test_nothing_is_kept_of_a_request_that_was_answered(calls: Calls, serve: Serve) -> None:
    serve(echo)
    Client(calls).ask(TENSORS).hear()
    wait_for(lambda: not any(isinstance(each, Frame) and each.body.nbytes for each in gc.get_objects()))


def test_a_front_that_is_gone_leaves_no_answer(calls: Calls, serve: Serve) -> None:
    asked, ended = threading.Event(), threading.Event()

    def wait(_: Tensors, caller: Caller) -> None:
        asked.set()
        ended.wait(SECONDS)
        caller.give([])

    server = serve(wait)
    client = Client(calls).ask({})
    assert asked.wait(SECONDS)
    assert server.is_alive()
    server.close()
    assert client.hear() is None
    ended.set()
    assert Client(calls).ask(TENSORS).hear() is None


def test_an_answer_to_nobody_is_the_end(calls: Calls, tmp_path: Path) -> None:
    """A front out of step is one that is gone: Triton is started again then."""
    with socket.socket(socket.AF_UNIX) as front:
        front.connect(str(tmp_path / SOCKET))
        client = Client(calls).ask({})
        send(front, 7, {"texts": []})
        assert client.hear() is None
        assert receive(front) is not None  # the request
        assert receive(front) is None
    assert Client(calls).ask({}).hear() is None


def test_triton_s_end_of_it_is_seen(calls: Calls, serve: Serve) -> None:
    server = serve(echo)
    assert Client(calls).ask({}).hear() == {"texts": []}
    calls.close()
    wait_for(lambda: not server.is_alive())


def test_an_end_of_triton_s_that_reads_nothing_holds_nobody_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "SEND_SECONDS", 1)
    path = tmp_path / SOCKET
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        server = CallServer(path, lambda _, caller: caller.give(["x" * 2**22]), threads=1)
        triton, _ = listening.accept()
        with triton:
            send_tensors(triton, 1, TENSORS)
            wait_for(lambda: not server.is_alive())
