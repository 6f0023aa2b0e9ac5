"""Questions over gRPC: a server with Triton's own messages, written from their description and not from the client."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from multimodal_client import Client, kserve_grpc
from support.clips import LOSSLESS, encode, noise

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
REFUSAL = "RequestRefused: max_output_len: is 99; send less"


@dataclass
class Served(GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient ships no types
    address: str = ""
    asked: list[Any] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=lambda: [b"a red ", "cercle é".encode()])
    refusal: tuple[grpc.StatusCode, str] | None = None
    ready: bool = True
    left: threading.Event = field(default_factory=threading.Event)

    def ModelReady(self, request: Any, _: Any) -> Any:  # noqa: N802 -- gRPC's name
        return service_pb2.ModelReadyResponse(ready=self.ready and request.name == "m")

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 -- gRPC's name
        self.asked.append(request)
        if self.refusal is not None:
            context.abort(*self.refusal)
        return self.outputs([b"".join(self.pieces), b""])

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802 -- gRPC's name
        context.add_callback(self.left.set)
        self.asked.append(next(requests))
        for piece in self.pieces:
            yield service_pb2.ModelStreamInferResponse(infer_response=self.outputs([piece]))
        if self.refusal is not None:
            yield service_pb2.ModelStreamInferResponse(error_message=self.refusal[1])

    @staticmethod
    def outputs(texts: list[bytes]) -> Any:
        response = service_pb2.ModelInferResponse()
        response.outputs.add(name="outputs", datatype="BYTES", shape=[len(texts), 1])
        response.raw_output_contents.append(b"".join(struct.pack("<I", len(text)) + text for text in texts))
        return response


@pytest.fixture
def served() -> Iterator[Served]:
    state = Served()
    server = grpc.server(ThreadPoolExecutor(2))
    add_GRPCInferenceServiceServicer_to_server(state, server)
    state.address = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield state
    server.stop(0).wait(10)


def test_tensors_and_answers(served: Served) -> None:
    client = Client(served.address, "m")
    client.wait_ready(5)
    assert client.query("é?", PICTURE, max_output_len=3, top_p=0.5) == ["a red cercle é", ""]
    (request,) = served.asked
    assert request.model_name == "m"
    sent = {
        described.name: (described.datatype, list(described.shape), content)
        for described, content in zip(request.inputs, request.raw_input_contents, strict=True)
    }
    assert sent == {
        "input_text": ("BYTES", [1, 1], struct.pack("<I", 3) + "é?".encode()),
        "input_media": ("UINT8", [1, 1, 5, 7, 3], PICTURE.tobytes()),
        "max_output_len": ("INT64", [1, 1], struct.pack("<q", 3)),
        "top_p": ("FP32", [1, 1], struct.pack("<f", 0.5)),
    }


def test_pieces_are_those_of_the_streaming_model(served: Served) -> None:
    assert list(Client(served.address, "m").stream("?", PICTURE)) == ["a red ", "cercle é"]
    assert served.asked[0].model_name == "m-stream"


def test_leaving_a_stream_cancels_it(served: Served) -> None:
    given = Client(served.address, "m").stream("?", PICTURE)
    next(given)
    given.close()  # type: ignore[attr-defined]
    assert served.left.wait(10)


def test_moments_are_seconds(served: Served) -> None:
    video = encode(noise(10), LOSSLESS["mp4"], rate=2)  # five seconds
    served.pieces = [b"from <", b"t0> to <t9", b"9>, not <t100>, not <t", b"1"]
    client = Client(served.address, "m", family=Family.LITA)
    assert client.query("at <2.5>?", video)[0] == "from <0.00> to <5.00>, not <t100>, not <t1"
    assert "".join(client.stream("at <2.5>?", video)) == "from <0.00> to <5.00>, not <t100>, not <t1"
    for request in served.asked:
        assert request.raw_input_contents[0][4:] == b"at <t50>?"
    raw = b"".join(served.pieces).decode()
    assert client.query("?", noise(10))[0] == raw, "frames carry no times"
    assert Client(served.address, "m", family=Family.VIDEO_NEVA).query("?", video)[0] == raw


@pytest.mark.parametrize("method", ["query", "stream"])
def test_a_refusal_comes_back_as_the_server_made_it(served: Served, method: str) -> None:
    served.refusal = (grpc.StatusCode.INVALID_ARGUMENT, REFUSAL)
    with pytest.raises(ProductError) as caught:
        list(getattr(Client(served.address, "m"), method)("?", PICTURE))
    assert (caught.value.failure.reason, caught.value.failure.at) == (Reason.REQUEST_REFUSED, "max_output_len")


@pytest.mark.parametrize(
    ("code", "said", "reason", "words"),
    [
        (grpc.StatusCode.NOT_FOUND, "unknown model 'm'", Reason.REQUEST_REFUSED, "NOT_FOUND: unknown model"),
        (grpc.StatusCode.INTERNAL, "odd", Reason.SERVER_FAILED, "INTERNAL: odd"),
        (grpc.StatusCode.UNAVAILABLE, "maximum queue size", Reason.SERVER_FAILED, "UNAVAILABLE: maximum queue size"),
        (grpc.StatusCode.UNAVAILABLE, "ServerBusy: queue: is full; ask later", Reason.SERVER_BUSY, "queue: is full"),
    ],
)
def test_errors(served: Served, code: grpc.StatusCode, said: str, reason: Reason, words: str) -> None:
    served.refusal = (code, said)
    with pytest.raises(ProductError, match=words) as caught:
        Client(served.address, "m").query("?", PICTURE)
    assert caught.value.failure.reason is reason


def test_a_model_that_is_not_ready(served: Served) -> None:
    served.ready = False
    with pytest.raises(ProductError, match=r"not ready after 0 seconds .not ready."):
        Client(served.address, "m").wait_ready(0.3)


def test_nobody_listens() -> None:
    client = Client("grpc://127.0.0.1:1", "m")
    with pytest.raises(ProductError, match=r"UNAVAILABLE: .*connect"):
        client.query("?", PICTURE)
    with pytest.raises(ProductError, match=r"not ready after 0 seconds .UNAVAILABLE"):
        client.wait_ready(0.3)


def test_what_no_message_holds_is_never_sent(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    monkeypatch.setattr(kserve_grpc, "MAX_MESSAGE_BYTES", 100)
    with pytest.raises(ProductError, match=r"takes 1.. bytes, and a message of gRPC at most 100"):
        Client(served.address, "m").query("?", PICTURE)
    assert served.asked == []
