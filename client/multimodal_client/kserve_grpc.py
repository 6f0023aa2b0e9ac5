"""KServe v2 over gRPC: the one module that imports gRPC and Triton's messages."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_client import failures
from multimodal_client.kserve import datatype, from_bytes, to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from multimodal_client.address import Address

    Tensors = Mapping[str, NDArray[Any]]

POLL_SECONDS: Final = 0.2
POLL_TIMEOUT_SECONDS: Final = 5.0
MAX_MESSAGE_BYTES: Final = 2**31 - 1
"""Of protobuf; gRPC's own default is 4 MiB."""
_OPTIONS: Final = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]
_WRONG: Final = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}


class GrpcWire:
    """Triton's gRPC port."""

    def __init__(self, address: Address, timeout: float) -> None:
        """Prepare.

        Args:
            address: of the server.
            timeout: of one whole exchange, in seconds.
        """
        self.address = address
        self._timeout = timeout

    def wait_ready(self, model: str, timeout: float) -> None:
        """Wait until a model is ready.

        Raises:
            ProductError: it was not within `timeout` seconds.
        """
        ends = time.monotonic() + timeout
        while True:
            problem = self._probe(model, min(timeout, POLL_TIMEOUT_SECONDS))
            if problem is None:
                return
            if time.monotonic() + POLL_SECONDS > ends:
                raise failures.not_ready(self.address, model, timeout, problem)
            time.sleep(POLL_SECONDS)

    def infer(self, model: str, inputs: Tensors) -> NDArray[np.object_]:
        """Ask a model and give its one output of bytes.

        Args:
            model: its name on the wire.
            inputs: by name, with the batch dimension; texts as arrays of `bytes` objects.

        Raises:
            ProductError: the server refuses, cannot be reached, or is too slow.
        """
        request = _request(model, inputs)
        with self._stub() as stub:
            return _output(stub.ModelInfer(request, timeout=self._timeout))

    def stream(self, model: str, inputs: Tensors) -> Iterator[list[bytes]]:
        """Ask a model that answers in pieces; leaving before the end cancels the question.

        Args:
            model: its name on the wire.
            inputs: as `infer` takes them.

        Yields:
            The output's elements of each response.

        Raises:
            ProductError: as `infer` does.
        """
        request = _request(model, inputs)
        with self._stub() as stub:
            for response in stub.ModelStreamInfer(iter([request]), timeout=self._timeout):
                if response.error_message:
                    raise failures.refused(self.address, response.error_message, code="in the stream", wrong=False)
                yield list(_output(response.infer_response).reshape(-1))

    def _probe(self, model: str, timeout: float) -> str | None:
        """Say why a model is not ready."""
        with grpc.insecure_channel(self._target) as channel:
            try:
                answer = GRPCInferenceServiceStub(channel).ModelReady(
                    messages.ModelReadyRequest(name=model), timeout=timeout
                )
            except grpc.RpcError as error:
                return f"{error.code().name}: {error.details()}"
        return None if answer.ready else "not ready"

    @contextmanager
    def _stub(self) -> Iterator[Any]:
        """Connect; what goes wrong is an error of ours."""
        with grpc.insecure_channel(self._target, options=_OPTIONS) as channel:
            try:
                yield GRPCInferenceServiceStub(channel)
            except grpc.RpcError as error:
                raise self._failure(error) from None

    def _failure(self, error: Any) -> ProductError:  # noqa: ANN401 -- gRPC's error is also a call
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return failures.too_slow(self.address, self._timeout)
        return failures.refused(self.address, details, code=code.name, wrong=code in _WRONG)

    @property
    def _target(self) -> str:
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        return f"{host}:{self.address.port}"


def _request(model: str, inputs: Tensors) -> Any:  # noqa: ANN401 -- protobuf
    size = sum(tensor.nbytes for tensor in inputs.values())
    if size >= MAX_MESSAGE_BYTES:
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at="input_media",
            problem=f"takes {size} bytes, and a message of gRPC at most {MAX_MESSAGE_BYTES}",
            remedy="scale it down, or ask over HTTP",
        )
    request = messages.ModelInferRequest(model_name=model)
    for name, tensor in inputs.items():
        request.inputs.add(name=name, datatype=datatype(tensor), shape=tensor.shape)
        request.raw_input_contents.append(bytes(to_bytes(tensor)))
    return request


def _output(response: Any) -> NDArray[np.object_]:  # noqa: ANN401 -- protobuf
    (output,), (content,) = response.outputs, response.raw_output_contents
    return from_bytes(content, tuple(output.shape))
