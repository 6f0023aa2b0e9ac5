"""The wire, with clients that are not ours: PyTriton's, as NeMo's client uses it, and plain HTTP."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pytriton.client import ModelClient
from pytriton.client.exceptions import PyTritonClientInferenceServerError

from multimodal_api import wire
from multimodal_client import NemoQueryMultimodal
from tests.triton.conftest import Server, picture

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]

TEXT = "what is in this image?"
Tensors = dict[str, NDArray[Any]]


def as_nemo_sends(text: str = TEXT, seed: int = 0, **numbers: float) -> Tensors:
    """The tensors of `NemoQueryMultimodal.query`: every number an array of shape [1, 1]."""
    types = {"top_p": np.single, "temperature": np.single, "repetition_penalty": np.single}
    tensors: Tensors = {
        "input_text": np.char.encode(np.array([[text]]), "utf-8"),
        "input_media": picture(seed)[None, None],
    }
    for name, value in numbers.items():
        tensors[name] = np.full((1, 1), value, dtype=types.get(name, np.int_))
    return tensors


def ask(url: str, tensors: Tensors) -> NDArray[np.str_]:
    with ModelClient(url, "tiny", inference_timeout_s=300) as client:
        return np.char.decode(client.infer_batch(**tensors)["outputs"].astype("bytes"), "utf-8")


NEMO_DEFAULTS: dict[str, float] = {
    "batch_size": 1,
    "max_output_len": 30,
    "top_k": 1,
    "top_p": 0.0,
    "temperature": 1.0,
    "repetition_penalty": 1.0,
    "num_beams": 1,
}


def test_metadata_is_upstream_s(server: Server) -> None:
    with urllib.request.urlopen(f"http://{server.http}/v2/models/tiny", timeout=30) as response:
        metadata = json.load(response)
    assert metadata["versions"] == ["1"]
    assert {(tensor["name"], tensor["datatype"], tuple(tensor["shape"])) for tensor in metadata["inputs"]} == {
        (tensor.name, tensor.datatype, (-1, *tensor.shape)) for tensor in wire.VISION_INPUTS
    }
    assert metadata["outputs"] == [{"name": "outputs", "datatype": "BYTES", "shape": [-1, -1]}]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_nemo_s_request_is_answered(server: Server, protocol: str) -> None:
    url = server.grpc if protocol == "grpc" else server.http
    answers = ask(url, as_nemo_sends(**NEMO_DEFAULTS))
    assert answers.shape == (1, 1)
    assert not answers[0, 0].startswith(wire.ERROR_PREFIX)
    assert answers[0, 0] == server.client.query(TEXT, picture(0), max_output_len=30)[0]


@pytest.mark.parametrize("left_out", NEMO_DEFAULTS)
def test_every_number_may_be_left_out(server: Server, left_out: str) -> None:
    numbers = {name: value for name, value in NEMO_DEFAULTS.items() if name != left_out}
    assert np.array_equal(ask(server.http, as_nemo_sends(**numbers)), ask(server.http, as_nemo_sends(**NEMO_DEFAULTS)))


def test_batch_size_gives_so_many_answers(server: Server) -> None:
    greedy = ask(server.http, as_nemo_sends(batch_size=2))
    assert greedy.shape == (2, 1)
    assert greedy[0, 0] == greedy[1, 0]
    sampled = ask(server.http, as_nemo_sends(batch_size=2, top_k=0, top_p=0.99, temperature=5.0, max_output_len=60))
    assert sampled.shape == (2, 1)
    assert sampled[0, 0] != sampled[1, 0]


def test_the_longest_answer_is_bounded_by_the_request(server: Server) -> None:
    long = server.client.query(TEXT, picture(0), max_output_len=60)[0]
    short = server.client.query(TEXT, picture(0), max_output_len=2)[0]
    assert len(short) < len(long)
    assert long.startswith(short.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_many_users_at_once_get_their_own_answers(server: Server) -> None:
    questions = [(f"{TEXT} {seed}", seed) for seed in range(8)]
    quiet = [server.client.query(text, picture(seed), max_output_len=20)[0] for text, seed in questions]
    assert len(set(quiet)) == len(quiet), "the engine does not look at the picture"
    with ThreadPoolExecutor(8) as threads:
        busy = list(
            threads.map(lambda asked: server.client.query(asked[0], picture(asked[1]), max_output_len=20)[0], questions)
        )
    assert busy == quiet


def test_one_user_s_error_is_nobody_else_s(server: Server) -> None:
    quiet = ask(server.http, as_nemo_sends(max_output_len=20))

    def one(index: int) -> object:
        if index % 2:
            return np.array_equal(ask(server.http, as_nemo_sends(max_output_len=20)), quiet)
        with pytest.raises(PyTritonClientInferenceServerError):
            ask(server.http, as_nemo_sends(text=" "))
        return True

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(one, range(12)))


def test_our_form_of_nemo_s_client(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("media") / "picture.png"
    Image.fromarray(picture(0)).save(path)
    theirs = ask(server.http, as_nemo_sends(**NEMO_DEFAULTS))
    ours = NemoQueryMultimodal(f"http://{server.http}", "tiny", "neva").query(TEXT, str(path))
    assert np.array_equal(ours, theirs)


def plus(**changed: NDArray[Any]) -> Tensors:
    return as_nemo_sends() | changed


def texts(*values: bytes) -> NDArray[np.object_]:
    return np.array([list(values)], dtype=object)


BAD: dict[str, tuple[Tensors, list[str]]] = {
    "empty text": (plus(input_text=texts(b"")), ["input_text", "empty", "send a question"]),
    "blank text": (plus(input_text=texts(b" \n")), ["input_text", "empty"]),
    "no utf-8": (plus(input_text=texts(b"\xff\xfe")), ["input_text", "byte 0", "UTF-8"]),
    "two texts": (plus(input_text=texts(b"a", b"b")), ["input_text", "2 texts", "[1, 1]"]),
    "long text": (plus(input_text=texts(b"x y " * 400)), ["input_text", "tokens", "80", "spec.limits.maxInputLen"]),
    "two pictures": (plus(input_media=np.zeros((1, 2, 4, 4, 3), np.uint8)), ["input_media", "2 pictures", "send 1"]),
    "no pixels": (plus(input_media=np.zeros((1, 1, 0, 4, 3), np.uint8)), ["input_media", "no elements"]),
    "no colours": (plus(input_media=np.zeros((1, 1, 4, 4, 1), np.uint8)), ["input_media", "shape", "3"]),
    "flat picture": (plus(input_media=np.zeros((1, 4, 4, 3), np.uint8)), ["input_media", "shape", "[1,4,4,3]"]),
    "float picture": (plus(input_media=np.zeros((1, 1, 4, 4, 3), np.float32)), ["input_media", "FP32", "UINT8"]),
    "thin picture": (plus(input_media=np.zeros((1, 1, 2**21, 1, 3), np.uint8)), ["input_media", "pixels", "scale it"]),
    "text as number": (plus(input_text=np.array([[1]])), ["input_text", "INT64", "BYTES"]),
    "length as float": (plus(max_output_len=np.array([[1.0]])), ["max_output_len", "FP64", "INT64"]),
    "no length": (plus(max_output_len=np.array([[0]])), ["max_output_len", "is 0", "between 1 and 200"]),
    "long answer": (plus(max_output_len=np.array([[201]])), ["max_output_len", "201", "spec.limits.maxOutputLen"]),
    "two lengths": (plus(max_output_len=np.array([[1, 2]])), ["max_output_len", "2 values", "[1, 1]"]),
    "many copies": (plus(batch_size=np.array([[3]])), ["batch_size", "is 3", "spec.limits.maxBatchSize is 2"]),
    "beams": (plus(num_beams=np.array([[4]])), ["num_beams", "is 4", "no beam search", "send 1"]),
    "adapter": (plus(lora_uids=texts(b"mine")), ["lora_uids", "adapter", '"-1"']),
    "top_k": (plus(top_k=np.array([[-1]])), ["top_k", "is -1", "between 0"]),
    "top_p": (plus(top_p=np.array([[2]], np.float32)), ["top_p", "is 2.0", "between 0 and 1"]),
    "temperature": (plus(temperature=np.array([[np.nan]], np.float32)), ["temperature", "nan", "between 0"]),
}


@pytest.mark.parametrize(("tensors", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_a_clear_error(server: Server, tensors: Tensors, words: list[str]) -> None:
    with pytest.raises(PyTritonClientInferenceServerError) as caught:
        ask(server.http, tensors)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_rows_of_two_users_are_never_mixed(server: Server) -> None:
    rows = {name: np.concatenate([tensor, tensor]) for name, tensor in as_nemo_sends().items()}
    with pytest.raises(Exception, match="batch"):
        ask(server.http, rows)


@pytest.mark.parametrize(
    ("request_body", "status"),
    [
        (b'{"inputs": []}', 400),
        (
            json.dumps(
                {"inputs": [{"name": "input_text", "shape": [1, 1], "datatype": "BYTES", "data": ["x"]}]}
            ).encode(),
            400,
        ),
    ],
    ids=["no inputs", "no picture"],
)
def test_plain_http(server: Server, request_body: bytes, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://{server.http}/v2/models/tiny/infer", request_body, timeout=30)
    assert caught.value.code == status


def test_a_refusal_is_a_client_s_error(server: Server) -> None:
    tensors = [
        {"name": "input_text", "shape": [1, 1], "datatype": "BYTES", "data": [""]},
        {"name": "input_media", "shape": [1, 1, 1, 1, 3], "datatype": "UINT8", "data": [0, 0, 0]},
    ]
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(
            f"http://{server.http}/v2/models/tiny/infer", json.dumps({"inputs": tensors}).encode(), timeout=60
        )
    assert caught.value.code == 400
    assert json.load(caught.value) == {"error": "RequestRefused: input_text: is empty; send a question"}


def test_metrics_carry_ours_and_triton_s(server: Server) -> None:
    def count(name: str) -> float:
        with urllib.request.urlopen(server.metrics, timeout=30) as response:  # noqa: S310 -- our own server
            found = re.search(rf"^{re.escape(name)} (\S+)$", response.read().decode(), re.MULTILINE)
        return float(found[1]) if found else 0

    names = ['multimodal_requests_total{outcome="Answered"}', "multimodal_time_to_first_token_seconds_count"]
    names += ['nv_inference_request_success{model="tiny",version="1"}', "multimodal_queue_seconds_count"]
    before = [count(name) for name in names]
    server.client.query(TEXT, picture(0), max_output_len=3)
    assert [count(name) - was for name, was in zip(names, before, strict=True)] == [1, 1, 1, 1]
    assert count("multimodal_running_requests") == 0


def test_the_log_is_json_and_says_nothing_of_what_users_say(server: Server) -> None:
    private = "a text that nobody else writes"
    answer = server.client.query(private, picture(1), max_output_len=20)[0]
    with urllib.request.urlopen(server.metrics, timeout=30):  # noqa: S310 -- our own server
        pass  # what is written behind an answer has been written before a scrape is answered
    lines = [line for line in server.log.splitlines() if '"request answered"' in line]
    assert json.loads(lines[-1])["generated_tokens"] > 0
    assert private not in server.log
    assert len(answer) < 4 or answer not in server.log
