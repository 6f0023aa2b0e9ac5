"""The streaming model of a real Triton: with PyTriton's client, with Triton's own messages, and with ours."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from pytriton.client import DecoupledModelClient
from pytriton.client.exceptions import PyTritonClientInferenceServerError

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_client import Client
from tests.triton.conftest import END_SECONDS, START_SECONDS, Server, picture
from tests.triton.test_wire import BAD, TEXT, Tensors, as_nemo_sends

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]

NAME = "tiny-stream"
HOT: dict[str, Any] = {"top_k": 0, "top_p": 0.99, "temperature": 5.0}
"""A random model's greedy answer could end at once; a hot one goes on."""


def pieces(server: Server, tensors: Tensors) -> list[Any]:
    with DecoupledModelClient(server.grpc, NAME, inference_timeout_s=300) as client:
        return [response["outputs"] for response in client.infer_batch(**tensors)]


def running(server: Server) -> int:
    with urllib.request.urlopen(server.metrics, timeout=30) as response:  # noqa: S310 -- our own server
        page = response.read().decode()
    (line,) = (line for line in page.splitlines() if line.startswith("multimodal_running_requests "))
    return int(float(line.split()[1]))


def wait_until(server: Server, count: int) -> None:
    ends = time.monotonic() + END_SECONDS
    while running(server) != count:
        assert time.monotonic() < ends, f"{running(server)} requests run"


def grpc_client(server: Server) -> Client:
    return Client(server.grpc, "tiny", timeout=START_SECONDS)


def test_it_is_the_same_model_and_decoupled(server: Server) -> None:
    def read(path: str) -> Any:
        with urllib.request.urlopen(f"http://{server.http}/v2/models/{path}", timeout=30) as response:
            return json.load(response)

    ours, streaming = read("tiny"), read(NAME)
    assert all(ours[key] == streaming[key] for key in ("versions", "inputs", "outputs"))
    assert [read(f"{name}/config").get("model_transaction_policy") for name in ("tiny", NAME)] == [
        None,
        {"decoupled": True},
    ]


def test_pieces_join_to_the_whole_answer(server: Server) -> None:
    wanted = server.client.query(TEXT, picture(0), max_output_len=40)[0]
    given = pieces(server, as_nemo_sends(max_output_len=40))
    assert len(given) > 5
    assert {piece.shape for piece in given} == {(1, 1)}
    assert b"".join(piece[0, 0] for piece in given).decode() == wanted


def test_copies_are_rows(server: Server) -> None:
    given = pieces(server, as_nemo_sends(batch_size=2, max_output_len=40, **HOT))
    assert {piece.shape for piece in given} == {(2, 1)}
    one, two = (b"".join(piece[row, 0] for piece in given) for row in range(2))
    assert one != two


def test_our_client_over_grpc(server: Server) -> None:
    client = grpc_client(server)
    client.wait_ready(30)
    wanted = server.client.query(TEXT, picture(1), max_output_len=40)
    assert client.query(TEXT, picture(1), max_output_len=40) == wanted
    given = list(client.stream(TEXT, picture(1), max_output_len=40))
    assert len(given) > 5
    assert ["".join(given)] == wanted


@pytest.mark.parametrize(("tensors", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_a_clear_error(server: Server, tensors: Tensors, words: list[str]) -> None:
    with pytest.raises(PyTritonClientInferenceServerError) as caught:
        pieces(server, tensors)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_refusal_comes_back_as_the_server_made_it(server: Server) -> None:
    for ask in (Client.query, lambda *asked, **more: list(Client.stream(*asked, **more))):
        with pytest.raises(ProductError) as caught:
            ask(grpc_client(server), TEXT, picture(0), max_output_len=201)
        assert caught.value.failure.reason is Reason.REQUEST_REFUSED
        assert caught.value.failure.at == "max_output_len"


def test_several_rows_are_refused(server: Server) -> None:
    rows = {name: np.concatenate([tensor, tensor]) for name, tensor in as_nemo_sends().items()}
    with pytest.raises(Exception, match="batch"):
        pieces(server, rows)


def begun(server: Server, seed: int) -> Iterator[str]:
    """A long answer of which one piece has been read."""
    given = grpc_client(server).stream(TEXT, picture(seed), max_output_len=200, **HOT)
    next(given)
    return given


def test_a_client_that_goes_away_frees_its_place(server: Server) -> None:
    wait_until(server, 0)
    streams = [begun(server, seed) for seed in range(2)]
    wait_until(server, 2)
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    wait_until(server, 0)
    assert "the request was lost" not in server.log
    assert server.log.count('"finish": "cancelled"') >= 2


def test_streams_and_whole_answers_side_by_side(server: Server) -> None:
    questions = [(f"{TEXT} {seed}", seed) for seed in range(6)]
    quiet = [server.client.query(text, picture(seed), max_output_len=20)[0] for text, seed in questions]

    def ask(asked: tuple[str, int]) -> str:
        text, seed = asked
        if seed % 3 == 0:
            return server.client.query(text, picture(seed), max_output_len=20)[0]
        return "".join(grpc_client(server).stream(text, picture(seed), max_output_len=20))

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(ask, questions)) == quiet


def test_pictures_have_no_shape_in_generate_stream(server: Server) -> None:
    with pytest.raises(ProductError, match="no pictures"):
        next(server.client.stream(TEXT, picture(0)))


def test_the_port_of_another_protocol_is_no_server(server: Server) -> None:
    with pytest.raises(ProductError, match="not ready after 0 seconds"):
        Client(f"grpc://{server.http}", "tiny").wait_ready(0.5)


def test_an_unknown_model(server: Server) -> None:
    with pytest.raises(ProductError) as caught:
        Client(server.grpc, "nobody").query(TEXT, picture(0))
    assert caught.value.failure.reason is Reason.REQUEST_REFUSED
    assert grpc.StatusCode.NOT_FOUND.name in str(caught.value)
