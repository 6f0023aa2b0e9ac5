"""Where a server is, and what is spoken there: an address says both."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

OPENAI_PATH: Final = "/v1"
"""Of an address, means OpenAI's API, as in that API's own clients."""


class Protocol(StrEnum):
    """What is spoken."""

    HTTP = "http"
    """KServe v2, with Triton."""
    GRPC = "grpc"
    """The same over gRPC."""
    OPENAI = "openai"
    """Chat completions over HTTP."""


DEFAULT_PORTS: Final = {Protocol.HTTP: 8000, Protocol.GRPC: 8001, Protocol.OPENAI: 9000}
_SCHEMES: Final = {"http", "https", "grpc"}


class Address(NamedTuple):
    """Where a server is."""

    protocol: Protocol
    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        """Give the address as people write it."""
        path = OPENAI_PATH if self.protocol is Protocol.OPENAI else ""
        return f"{self.scheme}://{self.host}:{self.port}{path}"


def parse(url: str) -> Address:
    """Understand an address; the port without one is that of its protocol.

    Args:
        url: HOST, HOST:PORT or http(s)://HOST[:PORT] for Triton, grpc://HOST[:PORT] for Triton over gRPC, the first
            three with /v1 behind them for the OpenAI port.

    Raises:
        ProductError: another scheme or path, or no host.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    path = parts.path.rstrip("/")
    protocol = Protocol.OPENAI if path == OPENAI_PATH else Protocol.GRPC if parts.scheme == "grpc" else Protocol.HTTP
    try:
        port = parts.port or DEFAULT_PORTS[protocol]
    except ValueError:
        port = -1
    ours = parts.scheme in _SCHEMES and path in {"", OPENAI_PATH} and (parts.scheme, path) != ("grpc", OPENAI_PATH)
    if not ours or not parts.hostname or port < 0:
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at="url",
            problem=f"{url!r} is no address of a server",
            remedy="write HOST:PORT, http://HOST:PORT or grpc://HOST:PORT for Triton, http://HOST:PORT/v1 for OpenAI's "
            "API",
        )
    return Address(protocol, parts.scheme, parts.hostname, port)
