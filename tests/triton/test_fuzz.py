"""Damaged requests over Triton, HTTP and gRPC: each is answered or refused by name, and nobody else notices."""

from __future__ import annotations

import collections
import http.client
import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from multimodal_api import wire
from multimodal_server.refusal import MARK
from tests.triton.conftest import FUZZ_FACTOR, START_SECONDS, Server, picture

pytestmark = [pytest.mark.triton, pytest.mark.timeout(3600)]

EXAMPLES = 200 * FUZZ_FACTOR
MEMORY = 256 * 2**20
"""How much all processes of the server may grow by: allocators keep some of what large requests took."""
OURS = "Internal: "
"""How a failure of this software begins. Triton's own parser answers some nonsense with its code INTERNAL too."""
HTTP_STATUSES = {200, 400, 404, 500, 503}
GRPC_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
}


@dataclass(frozen=True)
class Sent:
    """One tensor of a request, which may be none."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes


def text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


PICTURE = picture(0)
WHOLE = {
    tensor.name: tensor
    for tensor in (
        Sent("input_text", "BYTES", (1, 1), text(b"what?")),
        Sent("input_media", "UINT8", (1, 1, *PICTURE.shape), PICTURE.tobytes()),
        Sent("max_output_len", "INT64", (1, 1), struct.pack("<q", 3)),
    )
}
FORMATS = {"INT64": "<q", "FP32": "<f"}
SCALARS = [tensor for tensor in wire.VISION_INPUTS if tensor.datatype in FORMATS]
INTEGERS = st.sampled_from([-(2**63), -(2**31), -1, 0, 1, 2, 3, 2**31, 2**63 - 1]) | st.integers(-(2**63), 2**63 - 1)
REALS = st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e-45, 3e38]) | st.floats(width=32)
SIZES = st.sampled_from([0, 1, 2, 3, 28, 1000, -1, -2, 2**31 - 1, 2**31, 2**32 + 1, 2**62, 2**63 - 1])
NAMES = st.sampled_from(
    [*(tensor.name for tensor in wire.VISION_INPUTS), "outputs", "input_signal", "", "x" * 300, "\u0000"]
)
DATATYPES = st.sampled_from(
    ["BOOL", "UINT8", "UINT64", "INT8", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64", "BYTES", "", "NONE"]
)
RAW = st.binary(max_size=64) | st.sampled_from([tensor.raw for tensor in WHOLE.values()])


@st.composite
def scalars(draw: st.DrawFn) -> Sent:
    """A number of the right form."""
    tensor = draw(st.sampled_from(SCALARS))
    value = draw(INTEGERS if tensor.datatype == "INT64" else REALS)
    return Sent(tensor.name, tensor.datatype, (1, 1), struct.pack(FORMATS[tensor.datatype], value))


@st.composite
def pictures(draw: st.DrawFn) -> Sent:
    """Pixels of the right number for their shape, which may be none of a picture."""
    shape = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    return Sent("input_media", "UINT8", tuple(shape), bytes(math.prod(shape)))


TENSORS = (
    scalars()
    | pictures()
    | st.binary(max_size=40).map(lambda value: Sent("input_text", "BYTES", (1, 1), text(value)))
    | st.text(max_size=40).map(lambda value: Sent("input_text", "BYTES", (1, 1), text(value.encode())))
    | st.builds(Sent, NAMES, DATATYPES, st.lists(SIZES, max_size=6).map(tuple), RAW)
    | st.sampled_from(list(WHOLE.values())).flatmap(
        lambda whole: st.one_of(
            RAW.map(lambda raw: replace(whole, raw=raw)),
            DATATYPES.map(lambda datatype: replace(whole, datatype=datatype)),
            st.lists(SIZES, max_size=6).map(lambda shape: replace(whole, shape=tuple(shape))),
        )
    )
)
REQUESTS = st.builds(
    lambda left_out, changed, added: [
        *(
            {name: tensor for name, tensor in WHOLE.items() if name not in left_out} | {t.name: t for t in changed}
        ).values(),
        *added,
    ],
    st.sets(st.sampled_from(list(WHOLE)), max_size=1),
    st.lists(TENSORS, max_size=3),
    st.lists(TENSORS, max_size=1),
)
LIES = st.sampled_from([0, 0, 0, 1, -1, 100, -100, 2**31, 2**63])
"""How far what a request says about the length of something is off."""


@pytest.fixture
def unharmed(server: Server) -> Iterator[None]:
    """Whatever a test sends, the same processes answer a right question as before, and hold no more memory."""
    question = ("what is this?", picture(1))
    worker, wanted = server.worker(), server.client.query(*question, max_output_len=12)
    before = server.memory()
    yield
    assert server.process.poll() is None, server.log[-4000:]
    assert server.worker() == worker
    assert server.client.query(*question, max_output_len=12) == wanted
    assert server.memory() < before + MEMORY


def try_all(*strategies: Any) -> Callable[[Callable[..., None]], None]:
    def run(test: Callable[..., None]) -> None:
        settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))(given(*strategies)(test))()

    return run


def check_refusal(message: str) -> None:
    assert message
    assert not message.startswith(OURS)
    assert "Traceback" not in message
    assert MARK not in message, "it is as PyTriton prints it"


@pytest.mark.usefixtures("unharmed")
def test_damaged_requests_over_http(server: Server) -> None:
    @try_all(REQUESTS, LIES, LIES)
    def check(tensors: list[Sent], off: int, header_off: int) -> None:
        head = {
            "inputs": [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": tensor.shape,
                    "parameters": {"binary_data_size": len(tensor.raw) + (off if index == 0 else 0)},
                }
                for index, tensor in enumerate(tensors)
            ]
        }
        header = json.dumps(head).encode()
        body = header + b"".join(tensor.raw for tensor in tensors)
        ask_http(server, body, {"Inference-Header-Content-Length": str(len(header) + header_off)})


FEW = st.lists(st.sampled_from([-2, -1, 0, 1, 2, 3, 28]), max_size=3)
"""Sizes of a shape in a document: Triton makes room for it before it looks at the data, 512 MiB for [1, 2^26] of INT64,
and ends where there is none. This software does not hear of the request."""
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.usefixtures("unharmed")
def test_damaged_documents_over_http(server: Server) -> None:
    inputs = st.fixed_dictionaries({"name": NAMES, "datatype": DATATYPES, "shape": FEW, "data": JSON})

    @try_all(st.fixed_dictionaries({"inputs": st.lists(inputs | JSON, max_size=3)}) | JSON, st.integers(0, 1000))
    def check(document: Any, kept: int) -> None:
        ask_http(server, json.dumps(document).encode()[:kept], {"Content-Type": "application/json"})


def ask_http(server: Server, body: bytes, headers: dict[str, str]) -> None:
    connection = http.client.HTTPConnection(server.http, timeout=START_SECONDS)
    try:
        connection.request("POST", "/v2/models/tiny/infer", body, headers)
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    assert response.status in HTTP_STATUSES, (response.status, content[:2000])
    if response.status != http.client.OK:
        check_refusal(json.loads(content)["error"])


def grpc_request(model: str, tensors: list[Sent], more: int) -> service_pb2.ModelInferRequest:
    """A request with as many raw contents as tensors, one more, or one less."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for tensor in tensors:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    raw = [tensor.raw for tensor in tensors]
    request.raw_input_contents.extend([*raw, b"more"] if more > 0 else raw[: len(raw) + more])
    return request


@pytest.mark.usefixtures("unharmed")
def test_damaged_requests_over_grpc(server: Server) -> None:
    with grpc.insecure_channel(server.grpc.removeprefix("grpc://")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        @try_all(REQUESTS, st.integers(-1, 1))
        def check(tensors: list[Sent], more: int) -> None:
            future = stub.ModelInfer.future(grpc_request("tiny", tensors, more), timeout=START_SECONDS)
            if (error := future.exception()) is not None:
                assert error.code() in GRPC_CODES, (error.code(), error.details())
                check_refusal(error.details())


@pytest.mark.usefixtures("unharmed")
def test_damaged_requests_of_streams(server: Server) -> None:
    """Several requests go over one call, whose client may go away before the last word about them."""
    ends: collections.Counter[str] = collections.Counter()
    with grpc.insecure_channel(server.grpc.removeprefix("grpc://")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        @try_all(st.lists(st.tuples(REQUESTS, st.integers(-1, 1)), min_size=1, max_size=3), st.booleans())
        def check(asked: list[tuple[list[Sent], int]], stays: bool) -> None:  # noqa: FBT001 -- hypothesis gives it
            requests = [grpc_request("tiny-stream", tensors, more) for tensors, more in asked]
            for number, request in enumerate(requests):
                request.id = str(number)
                request.parameters["triton_enable_empty_final_response"].bool_param = True
            call = stub.ModelStreamInfer(iter(requests), timeout=START_SECONDS)
            ended = 0
            for said in call:
                if not stays:
                    call.cancel()
                    return
                if said.error_message:
                    check_refusal(said.error_message)
                    ends["refused"] += 1
                ended += bool(said.error_message) or said.infer_response.parameters["triton_final_response"].bool_param
                ends["answered"] += bool(said.infer_response.outputs)
            assert ended == len(requests), "a request has no end"

    assert ends["refused"]
    assert ends["answered"]
