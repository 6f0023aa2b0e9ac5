"""KServe v2 over HTTP, with tensors in binary: what Triton speaks, without its client library."""

from __future__ import annotations

import http.client
import json
import struct
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import numpy as np

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_client import exchange, failures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from multimodal_client.address import Address

    Tensors = Mapping[str, NDArray[Any]]

_HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_LENGTH: Final = struct.Struct("<I")
_DATATYPES: Final = {"object": "BYTES", "uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float32": "FP32"}
_FLAT: Final = 2
"""Dimensions that `generate_stream` can carry, the batch's included."""


class HttpWire:
    """Triton's HTTP port."""

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
        exchange.wait_ready(self.address, f"/v2/models/{quote(model)}/ready", model, timeout=timeout)

    def infer(self, model: str, inputs: Tensors) -> NDArray[np.object_]:
        """Ask a model and give its one output of bytes.

        Args:
            model: its name on the wire.
            inputs: by name, with the batch dimension; texts as arrays of `bytes` objects.

        Raises:
            ProductError: the server refuses, cannot be reached, or is too slow.
        """
        bodies = {name: to_bytes(tensor) for name, tensor in inputs.items()}
        header = json.dumps(
            {
                "inputs": [
                    {
                        "name": name,
                        "shape": tensor.shape,
                        "datatype": datatype(tensor),
                        "parameters": {"binary_data_size": len(bodies[name])},
                    }
                    for name, tensor in inputs.items()
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        answer = exchange.ask(
            self.address,
            f"/v2/models/{quote(model)}/infer",
            [header, *bodies.values()],
            {_HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"},
            timeout=self._timeout,
        )
        if answer.status != http.client.OK:
            raise exchange.refused(self.address, answer.status, answer.body)
        return _read_output(answer.headers.get(_HEADER_LENGTH), answer.body)

    def stream(self, model: str, inputs: Tensors) -> Iterator[list[bytes]]:
        """Ask a model that answers in pieces, by Triton's `generate_stream`, whose JSON has no shapes.

        Args:
            model: its name on the wire.
            inputs: as `infer` takes them.

        Yields:
            The output's elements of each response.

        Raises:
            ProductError: as `infer` does; or a tensor is not flat.
        """
        for name, tensor in inputs.items():
            if tensor.ndim > _FLAT:
                raise ProductError(
                    Reason.REQUEST_REFUSED,
                    at=name,
                    problem="Triton streams no pictures and videos over HTTP",
                    remedy="ask over gRPC (grpc://HOST:8001) or OpenAI's API (http://HOST:9000/v1), or for the whole "
                    "answer",
                )
        body = {name: _plain(tensor) for name, tensor in inputs.items()}
        path = f"/v2/models/{quote(model)}/generate_stream"
        for event in exchange.events(self.address, path, body, timeout=self._timeout):
            if "error" in event:
                raise failures.refused(self.address, str(event["error"]), code="in the stream", wrong=False)
            outputs = event["outputs"]
            yield [text.encode() for text in (outputs if isinstance(outputs, list) else [outputs])]


def datatype(tensor: NDArray[Any]) -> str:
    """Give KServe's name of a tensor's type."""
    return _DATATYPES[tensor.dtype.name]


def to_bytes(tensor: NDArray[Any]) -> bytes | memoryview:
    """Give a tensor's elements as they are sent; numbers are not copied: a video may be 2 GB."""
    if tensor.dtype != object:
        return np.ascontiguousarray(tensor).data.cast("B")
    return b"".join(_LENGTH.pack(len(element)) + element for element in tensor.reshape(-1))


def from_bytes(data: bytes, shape: tuple[int, ...]) -> NDArray[np.object_]:
    """Read a tensor of texts."""
    elements, at = [], 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        elements.append(data[at : at + length])
        at += length
    found = np.empty(len(elements), dtype=object)
    found[:] = elements
    return found.reshape(shape)


def _read_output(header_length: str | None, body: bytes) -> NDArray[np.object_]:
    """Read the one output, BYTES in binary."""
    start = int(header_length) if header_length else len(body)
    (output,) = json.loads(body[:start])["outputs"]
    return from_bytes(body[start:], tuple(output["shape"]))


def _plain(tensor: NDArray[Any]) -> Any:  # noqa: ANN401 -- JSON
    """Give a tensor of one row as JSON: its one element, or a list."""
    elements = tensor.reshape(-1).tolist()
    values = [element.decode() for element in elements] if tensor.dtype == object else elements
    return values[0] if len(values) == 1 else values
