from __future__ import annotations

import io
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multimodal_api import wire
from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_client import Client, NemoQueryMultimodal
from multimodal_client.address import parse
from tests.unit.client.conftest import KServe

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(path)
    return path


def content() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PICTURE).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("example", "http://example:8000"),
        ("example:80", "http://example:80"),
        ("http://example", "http://example:8000"),
        ("https://example:443", "https://example:443"),
        ("0.0.0.0", "http://0.0.0.0:8000"),  # noqa: S104 -- NeMo's default
        ("[::1]:9000", "http://::1:9000"),
        ("grpc://example", "grpc://example:8001"),
        ("grpc://example:9", "grpc://example:9"),
        ("example/v1", "http://example:9000/v1"),
        ("https://example:443/v1/", "https://example:443/v1"),
    ],
)
def test_addresses(url: str, address: str) -> None:
    assert str(parse(url)) == address


@pytest.mark.parametrize(
    "url",
    [
        "grpc://example/v1",
        "",
        "http://",
        "http://example/v2",
        "grpcs://example",
        "example:port",
        "http://a:99999",
        "ftp://x",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ProductError, match="HOST:PORT"):
        Client(url, "m")


def test_only_what_is_given_is_sent(server: KServe) -> None:
    assert Client(server.address, "m").query("what is it?", PICTURE) == ["a red circle"]
    (asked,) = server.asked
    assert asked.path == "/v2/models/m/infer"
    assert set(asked.tensors) == {"input_text", "input_media"}
    assert asked.tensors["input_text"].tolist() == [[b"what is it?"]]
    assert np.array_equal(asked.tensors["input_media"], PICTURE[None, None])


def test_numbers_have_the_wire_s_types_and_shapes(server: KServe) -> None:
    server.answers = [b"a", "é".encode()]
    answers = Client(server.address, "m").query(
        "é",
        PICTURE,
        batch_size=2,
        max_output_len=3,
        top_k=4,
        top_p=0.5,
        temperature=0.25,
        repetition_penalty=1.5,
        num_beams=1,
        lora_uids=["-1"],
    )
    assert answers == ["a", "é"]
    tensors = server.asked[0].tensors
    assert set(tensors) == {tensor.name for tensor in wire.VISION_INPUTS}
    assert tensors["input_text"].item() == "é".encode()
    for tensor in wire.VISION_INPUTS[2:]:
        assert tensors[tensor.name].shape == (1, 1)
    assert tensors["batch_size"].dtype == np.int64
    assert tensors["top_p"].dtype == np.float32
    assert [tensors[name].item() for name in ("batch_size", "max_output_len", "top_k", "temperature")] == [
        2,
        3,
        4,
        0.25,
    ]


def test_a_picture_may_be_a_path_bytes_or_an_array(server: KServe, png: Path) -> None:
    client = Client(server.address, "m")
    for picture in (png, str(png), content(), PICTURE):
        client.query("?", picture)
    for asked in server.asked:
        assert np.array_equal(asked.tensors["input_media"], PICTURE[None, None])


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ("/no/such/file.png", ["/no/such/file.png", "No such file"]),
        (b"no picture", ["10 bytes that are no picture"]),
        (PICTURE.astype(np.float32), ["float32", "uint8"]),
        (PICTURE[0], ["[7, 3]", "[height, width, 3]"]),
        ("http://127.0.0.1:1/x.png", ["http://127.0.0.1:1/x.png", "cannot be read"]),
    ],
    ids=["no file", "no picture", "no bytes", "no shape", "no address"],
)
def test_what_is_no_picture_is_never_sent(server: KServe, picture: object, words: list[str]) -> None:
    with pytest.raises(ProductError) as caught:
        Client(server.address, "m").query("?", picture)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert server.asked == []


def test_a_refusal_comes_back_as_the_server_made_it(server: KServe) -> None:
    server.status = 400
    server.error = (
        "RequestRefused: max_output_len: is 99 (spec.limits.maxOutputLen is 64); send a value between 1 and 64"
    )
    with pytest.raises(ProductError) as caught:
        Client(server.address, "m").query("?", PICTURE)
    failure = caught.value.failure
    assert (failure.reason, failure.at) == (Reason.REQUEST_REFUSED, "max_output_len")
    assert failure.remedy == "send a value between 1 and 64"


@pytest.mark.parametrize(
    ("status", "reason"), [(400, Reason.REQUEST_REFUSED), (500, Reason.SERVER_FAILED), (503, Reason.SERVER_FAILED)]
)
def test_another_server_s_error_is_shown(server: KServe, status: int, reason: Reason) -> None:
    server.status, server.error = status, "unexpected shape for input 'input_media'"
    with pytest.raises(ProductError, match="unexpected shape") as caught:
        Client(server.address, "m").query("?", PICTURE)
    assert caught.value.failure.reason is reason


def test_an_error_that_nemo_s_server_gives_as_an_answer_is_an_error(server: KServe) -> None:
    server.answers = [f"{wire.ERROR_PREFIX}out of memory".encode()]
    with pytest.raises(ProductError, match="out of memory"):
        Client(server.address, "m").query("?", PICTURE)


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        client = Client(f"127.0.0.1:{taken.getsockname()[1]}", "m")
        with pytest.raises(ProductError, match="cannot be reached"):
            client.query("?", PICTURE)
        with pytest.raises(ProductError, match="not ready after 0 seconds"):
            client.wait_ready(0.3)


def test_a_slow_server_ends_in_a_deadline() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        client = Client(f"127.0.0.1:{listening.getsockname()[1]}", "m", timeout=0.2)
        with pytest.raises(ProductError) as caught:
            client.query("?", PICTURE)
    assert caught.value.failure.reason is Reason.DEADLINE_EXCEEDED


def test_waiting_for_a_model(server: KServe) -> None:
    server.ready_after = 2
    Client(server.address, "m").wait_ready(10)
    assert server.ready_after == 0


def test_nemo_s_client(server: KServe, png: Path) -> None:
    server.answers = [b"one", b"two"]
    answers = NemoQueryMultimodal(f"http://{server.address}", "m", "neva").query("?", str(png), batch_size=2)
    assert answers.tolist() == [["one"], ["two"]]
    tensors = server.asked[0].tensors
    assert set(tensors) == {tensor.name for tensor in wire.VISION_INPUTS} - {"lora_uids"}
    assert tensors["max_output_len"].item() == 30


def test_nemo_s_client_leaves_out_what_is_none(server: KServe, png: Path) -> None:
    NemoQueryMultimodal(server.address, "m", "neva").query("?", str(png), top_k=None, max_output_len=None)
    assert {"top_k", "max_output_len"}.isdisjoint(server.asked[0].tensors)


def test_nemo_s_client_names_unknown_families_when_it_is_asked(server: KServe, png: Path) -> None:
    client = NemoQueryMultimodal(server.address, "m", "mllama")
    with pytest.raises(RuntimeError, match=r"Invalid model type mllama; known are: neva, .*salm"):
        client.query("?", str(png))
    assert server.asked == []
