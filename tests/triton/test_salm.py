"""The tiny SALM behind real Triton: held-out questions, asked as NeMo's client asks them and over the OpenAI port."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

import aiohttp
import numpy as np
import pytest
from pytriton.client import ModelClient
from pytriton.client.exceptions import PyTritonClientInferenceServerError
from tiny.answering import Case
from tiny.judging import accepts

from multimodal_api import wire
from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_client import Client, NemoQueryMultimodal
from support import tiny_salm
from tests.triton.conftest import Server

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]

HELD_OUT = tiny_salm.FOLDER / "heldout"


@pytest.fixture(scope="module")
def server(serve: Callable[[Iterable[Family]], list[Server]]) -> Server:
    return serve([Family.SALM])[0]


def as_nemo_sends(case: Case, **changed: Any) -> dict[str, Any]:
    """The tensors of `NemoQueryMultimodal.query` for salm, whose scripts write the template's words themselves."""
    return {
        "input_text": np.char.encode(np.array([[f"Q: {case.question.text} A:"]]), "utf-8"),
        "input_signal": case.medium[None],
        "input_signal_length": np.array([[len(case.medium)]], np.intc),
        "max_output_len": np.array([[30]]),
        "top_k": np.array([[1]]),
        "top_p": np.array([[0]], np.single),
    } | changed


def wrong(said: dict[int, str]) -> list[tuple[object, str]]:
    cases = tiny_salm.cases()
    return [
        (cases[number].question, answer)
        for number, answer in said.items()
        if not accepts(cases[number].question.answer, answer)
    ]


def test_metadata_is_upstream_s(server: Server) -> None:
    with urllib.request.urlopen(f"http://{server.http}/v2/models/tiny", timeout=30) as response:
        metadata = json.load(response)
    assert {(tensor["name"], tensor["datatype"], tuple(tensor["shape"])) for tensor in metadata["inputs"]} == {
        (tensor.name, tensor.datatype, (-1, *tensor.shape)) for tensor in wire.AUDIO_INPUTS
    }


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_every_held_out_question_is_answered(server: Server, protocol: str) -> None:
    said = {}
    with ModelClient(server.grpc if protocol == "grpc" else server.http, "tiny", inference_timeout_s=300) as client:
        for number, case in enumerate(tiny_salm.cases()):
            said[number] = client.infer_batch(**as_nemo_sends(case))["outputs"][0, 0].decode()
    assert wrong(said) == []


def test_our_form_of_nemo_s_client(server: Server) -> None:
    client = NemoQueryMultimodal(f"http://{server.http}", "tiny", "salm")
    listed = json.loads((HELD_OUT / "heldout.json").read_text())
    said = {
        number: str(client.query(each["question"], str(HELD_OUT / each["sound"]))[0, 0])
        for number, each in enumerate(listed)
    }
    assert wrong(said) == []


async def test_every_held_out_question_is_answered_over_the_openai_port(server: Server) -> None:
    listed = json.loads((HELD_OUT / "heldout.json").read_text())

    async def ask(session: aiohttp.ClientSession, each: dict[str, str]) -> str:
        data = base64.b64encode((HELD_OUT / each["sound"]).read_bytes()).decode()
        sound = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        content = [{"type": "text", "text": each["question"]}, sound]
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0}
        async with session.post(f"{server.openai}/v1/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
            return str((await response.json())["choices"][0]["message"]["content"])

    async with aiohttp.ClientSession() as session:
        answers = await asyncio.gather(*(ask(session, each) for each in listed))
    assert wrong(dict(enumerate(answers))) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"input_signal": np.zeros((1, 0), np.float32)}, ["input_signal", "no elements"]),
        ({"input_signal_length": np.array([[10**9]], np.intc)}, ["input_signal_length", "1000000000", "samples"]),
        ({"input_signal": np.zeros((1, 9), np.float32)}, ["input_signal_length", "between 1 and 9"]),
        ({"input_signal": np.full((1, 99_999), np.nan, np.float32)}, ["input_signal", "not finite"]),
        ({"input_signal_length": np.array([[9_000]])}, ["input_signal_length", "INT64", "INT32"]),
        ({"input_text": np.array([[b"Q: A:"]], dtype=object)}, ["input_text", "empty", "send a question"]),
    ],
    ids=["empty", "long length", "short signal", "not finite", "wide length", "no question"],
)
def test_bad_input_is_a_clear_error(server: Server, changed: dict[str, Any], words: list[str]) -> None:
    with (
        ModelClient(server.http, "tiny", inference_timeout_s=300) as client,
        pytest.raises(PyTritonClientInferenceServerError) as caught,
    ):
        client.infer_batch(**as_nemo_sends(tiny_salm.cases()[3], **changed))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_generate_stream_over_plain_http(server: Server) -> None:
    case = tiny_salm.cases()[0]
    body = {"input_text": case.question.text, "input_signal": case.medium.tolist(), "max_output_len": 30}
    request = json.dumps(body | {"input_signal_length": len(case.medium)}).encode()
    with urllib.request.urlopen(f"http://{server.http}/v2/models/tiny-stream/generate_stream", request) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        pieces = [json.loads(line[6:])["outputs"] for line in response if line.startswith(b"data: ")]
    assert wrong({0: "".join(pieces)}) == []


@pytest.mark.parametrize("url", ["http", "grpc", "openai"])
def test_our_client_streams_over_every_protocol(server: Server, url: str) -> None:
    client = Client(getattr(server, url) + ("/v1" if url == "openai" else ""), "tiny", family=Family.SALM)
    listed = json.loads((HELD_OUT / "heldout.json").read_text())
    said = [list(client.stream(each["question"], HELD_OUT / each["sound"])) for each in listed]
    assert max(map(len, said)) > 1
    assert wrong({number: "".join(pieces) for number, pieces in enumerate(said)}) == []


def test_a_refusal_over_generate_stream(server: Server) -> None:
    with pytest.raises(ProductError) as caught:
        next(
            Client(server.http, "tiny", family=Family.SALM).stream("?", tiny_salm.cases()[0].medium, max_output_len=99)
        )
    assert caught.value.failure.at == "max_output_len"


def test_a_client_of_generate_stream_that_goes_away_ends_its_answer(server: Server) -> None:
    client = Client(server.http, "tiny", family=Family.SALM)
    for _ in range(4):
        given = client.stream("?", tiny_salm.cases()[0].medium, max_output_len=48, top_k=0, temperature=50.0, top_p=1.0)
        next(given)
        given.close()
    assert '"finish": "cancelled"' in server.log


def test_several_rows_are_refused(server: Server) -> None:
    rows = {name: np.concatenate([tensor, tensor]) for name, tensor in as_nemo_sends(tiny_salm.cases()[0]).items()}
    with (
        ModelClient(server.http, "tiny", inference_timeout_s=300) as client,
        pytest.raises(Exception, match="batch"),
    ):
        client.infer_batch(**rows)
