"""Both ends of the sockets between Triton's process and the front, without Triton."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_server import calls as calls_module
from multimodal_server.calls import Place
from multimodal_server.triton_calls import Calls, name, send_tensors

Tensors = Mapping[str, NDArray[Any]]
Give = Callable[[list[str]], None]

TENSORS: Tensors = {
    "picture": np.arange(2 * 3 * 3, dtype=np.uint8).reshape(1, 1, 2, 3, 3),
    "number": np.array([[-7]], dtype=np.int64),
    "sound": np.linspace(0, 1, 33, dtype=np.float32)[None],
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "words": np.array([[b"what?", b"", "über\0".encode()]], dtype=object),
    "many": np.array([[str(number).encode() for number in range(3000)]], dtype=object),
    "large": np.arange(2**21, dtype=np.uint8)[None],
}


def echo(tensors: Tensors, give: Give) -> None:
    give(told(tensors))


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path / name("tiny_0_3"))


def told(tensors: Tensors) -> list[str]:
    """Say what came, one line for each tensor."""
    return [f"{key} {tensor.dtype} {tensor.shape} {tensor.tolist()}" for key, tensor in tensors.items()]


def test_tensors_come_as_they_were_sent(calls: Calls, tmp_path: Path) -> None:
    place = Place(tmp_path / name("tiny_0_3"), echo)
    for _ in range(2):
        assert calls.ask(TENSORS) == {"texts": told(TENSORS)}
    place.close()


def test_a_refusal_has_triton_s_code_and_our_words(calls: Calls, tmp_path: Path) -> None:
    def refuse(_: Tensors, _give: Give) -> None:
        raise ProductError(Reason.SERVER_BUSY, at="queue", problem="is \N{GRINNING FACE} full", remedy="wait")

    Place(tmp_path / name("tiny_0_3"), refuse)
    said = calls.ask({})
    assert said == {"code": "UNAVAILABLE", "message": "ServerBusy: queue: is \N{GRINNING FACE} full; wait"}


def test_a_front_that_is_gone_leaves_no_answer(calls: Calls, tmp_path: Path) -> None:
    asked, ended = threading.Event(), threading.Event()

    def wait(_: Tensors, give: Give) -> None:
        asked.set()
        ended.wait(10)
        give([])

    place = Place(tmp_path / name("tiny_0_3"), wait)
    said: list[object] = []
    asking = threading.Thread(target=lambda: said.append(calls.ask({})))
    asking.start()
    assert asked.wait(10)
    assert place.is_alive()
    place.close()
    asking.join(10)
    assert said == [None]
    ended.set()
    assert calls.ask(TENSORS) is None


def test_triton_s_end_of_it_is_seen(calls: Calls, tmp_path: Path) -> None:
    place = Place(tmp_path / name("tiny_0_3"), echo)
    calls.ask({})
    calls.close()
    place.join(10)
    assert not place.is_alive()


def test_an_end_of_triton_s_that_reads_nothing_holds_nobody_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "SEND_SECONDS", 1)
    path = tmp_path / name("tiny_0_3")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        place = Place(path, lambda _, give: give(["x" * 2**22]))
        triton, _ = listening.accept()
        with triton:
            send_tensors(triton, TENSORS)
            place.join(10)
            assert not place.is_alive()
