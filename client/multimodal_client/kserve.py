"""A small client of KServe v2 over HTTP, with tensors in binary: what Triton speaks, without its client library."""

from __future__ import annotations

import http.client
import json
import re
import struct
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

DEFAULT_PORT: Final = 8000
POLL_SECONDS: Final = 0.2
POLL_TIMEOUT_SECONDS: Final = 5.0
_HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_LENGTH: Final = struct.Struct("<I")
_FAILURE: Final = re.compile(r"(?P<reason>\w+): (?P<at>[^:]+): (?P<problem>.+?); (?P<remedy>.+)", re.DOTALL)
"""How `Failure` reads on the wire."""
_REASONS: Final = {reason.value: reason for reason in Reason}
_DATATYPES: Final = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float32": "FP32"}


class Address(NamedTuple):
    """Where a server is."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        """Give the address as people write it."""
        return f"{self.scheme}://{self.host}:{self.port}"


def parse(url: str) -> Address:
    """Understand `host`, `host:port` and `http(s)://host[:port]`; the port without one is Triton's.

    Raises:
        ProductError: another scheme, or no host.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError:
        port = -1
    if parts.scheme not in {"http", "https"} or not parts.hostname or port < 0:
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at="url",
            problem=f"{url!r} is no address of an HTTP server",
            remedy="write HOST, HOST:PORT or http://HOST:PORT",
        )
    return Address(parts.scheme, parts.hostname, port)


def wait_ready(address: Address, model: str, *, timeout: float) -> None:
    """Wait until a model is ready.

    Args:
        address: of the server.
        model: its name on the wire.
        timeout: in seconds.

    Raises:
        ProductError: it was not within that time.
    """
    ends = time.monotonic() + timeout
    while True:
        try:
            status, _, _ = _request(
                address, "GET", f"/v2/models/{quote(model)}/ready", timeout=min(timeout, POLL_TIMEOUT_SECONDS)
            )
            problem = f"HTTP status {status}"
        except OSError as error:
            status, problem = 0, str(error) or type(error).__name__
        if status == http.client.OK:
            return
        if time.monotonic() + POLL_SECONDS > ends:
            raise ProductError(
                Reason.DEADLINE_EXCEEDED,
                at=str(address),
                problem=f"model {model!r} is not ready after {timeout:.0f} seconds ({problem})",
                remedy="check the address and the model's name; `kubectl get mmd` tells how far it is",
            )
        time.sleep(POLL_SECONDS)


def infer(address: Address, model: str, inputs: Mapping[str, NDArray[Any]], *, timeout: float) -> NDArray[np.object_]:
    """Ask a model and give its one output of bytes.

    Args:
        address: of the server.
        model: its name on the wire.
        inputs: by name, with the batch dimension; texts as arrays of `bytes` objects.
        timeout: of the whole exchange, in seconds.

    Raises:
        ProductError: the server refuses, cannot be reached, or is too slow.
    """
    bodies = {name: _to_bytes(tensor) for name, tensor in inputs.items()}
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": tensor.shape,
                    "datatype": _datatype(tensor),
                    "parameters": {"binary_data_size": len(bodies[name])},
                }
                for name, tensor in inputs.items()
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    try:
        status, headers, body = _request(
            address,
            "POST",
            f"/v2/models/{quote(model)}/infer",
            timeout=timeout,
            body=[header, *bodies.values()],
            headers={
                _HEADER_LENGTH: str(len(header)),
                "Content-Length": str(len(header) + sum(map(len, bodies.values()))),
                "Content-Type": "application/octet-stream",
            },
        )
    except TimeoutError:
        raise ProductError(
            Reason.DEADLINE_EXCEEDED,
            at=str(address),
            problem=f"no answer within {timeout:.0f} seconds",
            remedy="ask again, with a longer timeout",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise ProductError(
            Reason.SERVER_FAILED,
            at=str(address),
            problem=f"the server cannot be reached: {error}",
            remedy="check the address, and that the pod is running",
        ) from error
    if status != http.client.OK:
        raise _refused(address, status, body)
    return _read_output(headers.get(_HEADER_LENGTH), body)


def _request(
    address: Address,
    method: str,
    path: str,
    *,
    timeout: float,
    body: Sequence[bytes | memoryview] | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Mapping[str, str], bytes]:
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.host, address.port, timeout=timeout)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def _refused(address: Address, status: int, body: bytes) -> ProductError:
    """Make an error of what the server says: its own, where it is one of this project's."""
    try:
        said = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        said = body.decode(errors="replace").strip() or "nothing"
    ours = _FAILURE.fullmatch(said)
    if ours is not None and ours["reason"] in _REASONS:
        return ProductError(_REASONS[ours["reason"]], at=ours["at"], problem=ours["problem"], remedy=ours["remedy"])
    return ProductError(
        Reason.REQUEST_REFUSED if status < http.client.INTERNAL_SERVER_ERROR else Reason.SERVER_FAILED,
        at=str(address),
        problem=f"the server answers {status}: {said}",
        remedy="change the request"
        if status < http.client.INTERNAL_SERVER_ERROR
        else "see the pod's log, or ask again",
    )


def _datatype(tensor: NDArray[Any]) -> str:
    return "BYTES" if tensor.dtype == object else _DATATYPES[tensor.dtype.name]


def _to_bytes(tensor: NDArray[Any]) -> bytes | memoryview:
    if tensor.dtype != object:
        return np.ascontiguousarray(tensor).data.cast("B")  # not copied: a video may be 2 GB
    return b"".join(_LENGTH.pack(len(element)) + element for element in tensor.reshape(-1))


def _read_output(header_length: str | None, body: bytes) -> NDArray[np.object_]:
    """Read the one output, BYTES in binary."""
    start = int(header_length) if header_length else len(body)
    (output,) = json.loads(body[:start])["outputs"]
    elements, at = [], start
    while at < len(body):
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        elements.append(body[at : at + length])
        at += length
    found = np.empty(len(elements), dtype=object)
    found[:] = elements
    return found.reshape(output["shape"])
