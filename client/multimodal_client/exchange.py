"""One exchange over HTTP: a whole answer, or one that comes as server-sent events."""

from __future__ import annotations

import http.client
import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from multimodal_client import failures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from multimodal_client.address import Address

POLL_SECONDS: Final = 0.2
POLL_TIMEOUT_SECONDS: Final = 5.0
JSON: Final = {"Content-Type": "application/json"}
_EVENT: Final = b"data: "


class Answer(NamedTuple):
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(
    address: Address,
    path: str,
    body: Sequence[bytes | memoryview],
    headers: Mapping[str, str],
    *,
    timeout: float,
) -> Answer:
    """Send a request and give the whole answer, whatever its status.

    Args:
        address: of the server.
        path: of the request.
        body: in pieces.
        headers: of the request.
        timeout: of the whole exchange, in seconds.

    Raises:
        ProductError: the server cannot be reached, or is too slow.
    """
    with _asked(address, path, body, headers, timeout=timeout) as response:
        return Answer(response.status, dict(response.getheaders()), response.read())


def events(address: Address, path: str, body: object, *, timeout: float) -> Iterator[Any]:
    """Send JSON and give the events of the answer, parsed; leaving before the end closes the connection.

    Args:
        address: of the server.
        path: of the request.
        body: of the request.
        timeout: of the whole exchange, in seconds.

    Raises:
        ProductError: the server cannot be reached, is too slow, or answers with no success.
    """
    ends = time.monotonic() + timeout
    with _asked(address, path, [json.dumps(body).encode()], JSON, timeout=timeout) as response:
        if response.status != http.client.OK:
            raise refused(address, response.status, response.read())
        for line in response:
            if time.monotonic() > ends:
                raise failures.too_slow(address, timeout)
            if line.startswith(_EVENT + b"{"):
                yield json.loads(line.removeprefix(_EVENT))


def wait_ready(address: Address, path: str, model: str, *, timeout: float) -> None:
    """Wait until a path answers 200.

    Raises:
        ProductError: it did not within `timeout` seconds.
    """
    ends = time.monotonic() + timeout
    while True:
        problem = _probe(address, path, min(timeout, POLL_TIMEOUT_SECONDS))
        if problem is None:
            return
        if time.monotonic() + POLL_SECONDS > ends:
            raise failures.not_ready(address, model, timeout, problem)
        time.sleep(POLL_SECONDS)


def refused(address: Address, status: int, body: bytes) -> Exception:
    """Make an error of an answer that is no success."""
    return failures.refused(address, said(body), code=str(status), wrong=status < http.client.INTERNAL_SERVER_ERROR)


def said(body: bytes) -> str:
    """Give the words of an error's body: Triton's are `error`, perhaps in an event; OpenAI's in it, with a reason."""
    try:
        error = json.loads(body.removeprefix(_EVENT))["error"]
        return error if isinstance(error, str) else f"{error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


def _probe(address: Address, path: str, timeout: float) -> str | None:
    """Say why a path does not answer 200."""
    connection = _connect(address, timeout)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return None if status == http.client.OK else f"HTTP status {status}"


@contextmanager
def _asked(
    address: Address, path: str, body: Sequence[bytes | memoryview], headers: Mapping[str, str], *, timeout: float
) -> Iterator[http.client.HTTPResponse]:
    """Send a request; what goes wrong while the answer is read is an error of ours too."""
    connection = _connect(address, timeout)
    length = {"Content-Length": str(sum(map(len, body)))}
    try:
        connection.request("POST", path, body=body, headers=dict(headers) | length)
        yield connection.getresponse()
    except TimeoutError:
        raise failures.too_slow(address, timeout) from None
    except (OSError, http.client.HTTPException) as error:
        raise failures.unreachable(address, error) from error
    finally:
        connection.close()


def _connect(address: Address, timeout: float) -> http.client.HTTPConnection:
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    return kind(address.host, address.port, timeout=timeout)
