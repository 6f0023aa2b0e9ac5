"""Files from where people have them: a path, standard input, an address on the web."""

from __future__ import annotations

import sys
import time
import urllib.request
from contextlib import nullcontext
from http.client import HTTPException
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    Place = str | Path

MAX_BYTES: Final = 2**28
FETCH_SECONDS: Final = 60.0
"""Of one address, redirections included."""
SILENT_SECONDS: Final = 5.0
"""Of a web server; NeMo's client has the same number."""
STDIN: Final = "-"
_CHUNK: Final = 2**16


def read(place: Place) -> bytes:
    """Read a file.

    Args:
        place: a path, an http(s) address, or "-" for standard input.

    Raises:
        ProductError: it cannot be read, is larger than `MAX_BYTES`, or comes too slowly.
    """
    try:
        if isinstance(place, str) and place.startswith(("http://", "https://")):
            data = _fetch(place)
        else:
            with _open(place) as file:
                data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise _refused(
            place,
            f"cannot be read: {error}",
            "give the path or the http(s) address of a file, or - for standard input",
        ) from error
    if len(data) > MAX_BYTES:
        raise _refused(place, f"is larger than {MAX_BYTES} bytes", "scale it down, or cut it")
    return data


def _open(place: Place) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdin.buffer) if place == STDIN else Path(place).open("rb")


def _fetch(url: str) -> bytes:
    """Read what an address holds, one byte more than is taken at most."""
    ends = time.monotonic() + FETCH_SECONDS
    data = bytearray()
    with _web().open(url, timeout=SILENT_SECONDS) as response:
        while len(data) <= MAX_BYTES and (chunk := response.read1(_CHUNK)):
            data += chunk
            if time.monotonic() > ends:
                raise _refused(
                    url, f"is not here after {FETCH_SECONDS:.0f} seconds", "give a file, or a nearer address"
                )
    return bytes(data)


def _web() -> urllib.request.OpenerDirector:
    """Make what opens http and https alone: the usual opener would follow a redirection to FTP."""
    web = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        web.add_handler(handler())
    return web


def _refused(place: Place, problem: str, remedy: str) -> ProductError:
    return ProductError(Reason.REQUEST_REFUSED, at=str(place), problem=problem, remedy=remedy)
