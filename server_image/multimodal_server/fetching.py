"""Media from addresses.

Each is checked before anything is sent, is bounded in size and time, and asked of the very network address that was
checked.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from multimodal_server.addresses import check_address, is_public, read_domains, refused

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from multimodal_server.addresses import Domain, IPAddress

    Policy = Callable[[IPAddress], bool]
    """Which network addresses may be asked."""

MAX_BYTES: Final = 3 * 2**25
"""Of all media that one request names: as much as base64 carries in the largest body."""
MAX_ADDRESSES: Final = 64
"""In one request."""
MAX_LENGTH: Final = 4096
"""Of an address, in characters."""
MAX_REDIRECTS: Final = 3
SECONDS: Final = 30.0
"""For all media of a request together, waiting for a connection included."""
CONNECTIONS: Final = 16
"""At once, of all requests."""
RESOLVERS: Final = 4
"""Threads for names: a name server that does not answer holds up no other work."""
_AGENT: Final = "multimodal-server"


class Fetcher:
    """Fetches the media that requests name. Made, used and closed in one event loop."""

    def __init__(self, domains: tuple[Domain, ...], session: aiohttp.ClientSession) -> None:
        self._domains = domains
        self._session = session

    async def fetch(self, wanted: Mapping[str, str]) -> dict[str, bytes]:
        """Fetch all media of one request at once; what is cancelled stops.

        Args:
            wanted: what to call each address in an error, by address.

        Returns:
            Contents, by address.

        Raises:
            ProductError: one is refused, or cannot be had; the others are given up then.
        """
        if len(wanted) > MAX_ADDRESSES:
            at = list(wanted.values())[MAX_ADDRESSES]
            raise refused(at, f"is one address more than {MAX_ADDRESSES}")
        for address, at in wanted.items():
            if len(address) > MAX_LENGTH:
                raise refused(at, f"is longer than {MAX_LENGTH} characters")
        room = _Room(MAX_BYTES)
        ends = asyncio.get_running_loop().time() + SECONDS
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    address: group.create_task(self._fetch(address, room, ends, at=at))
                    for address, at in wanted.items()
                }
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return {address: task.result() for address, task in tasks.items()}

    async def _fetch(self, address: str, room: _Room, ends: float, *, at: str) -> bytes:
        try:
            async with asyncio.timeout_at(ends):
                return await self._follow(URL(address), room, at=at)
        except TimeoutError:
            raise refused(at, f"has not arrived after {SECONDS:.0f} seconds") from None
        except _ForbiddenError:
            raise refused(at, "leads to a network address that is not public") from None
        except (aiohttp.ClientError, OSError, ValueError):  # the last one is yarl's, and a certificate's
            raise refused(
                at, "cannot be fetched: it is no valid address, or its host is not reached or breaks HTTP or TLS"
            ) from None

    async def _follow(self, url: URL, room: _Room, *, at: str) -> bytes:
        for _ in range(1 + MAX_REDIRECTS):
            check_address(url, self._domains, at=at)
            async with self._session.get(url, allow_redirects=False) as response:
                elsewhere = response.headers.get("Location")
                if response.status // 100 != HTTPStatus.MULTIPLE_CHOICES // 100 or elsewhere is None:
                    return await _read(response, room, at=at)
                url = response.url.join(URL(elsewhere))
        raise refused(at, f"leads to more than {MAX_REDIRECTS} addresses, one after the other")


async def _read(response: aiohttp.ClientResponse, room: _Room, *, at: str) -> bytes:
    if response.status != HTTPStatus.OK:
        raise refused(at, f"is answered with status {response.status}", "see whether anyone can fetch it")
    content = bytearray()
    async for piece in response.content.iter_any():
        room.take(len(piece), at=at)
        content += piece
    return bytes(content)


class _Room:
    """What is left for the media of one request."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int, *, at: str) -> None:
        self._left -= size
        if self._left < 0:
            raise refused(
                at, f"is too large: all addresses of a request give at most {MAX_BYTES} bytes", "scale it down"
            )


class _ForbiddenError(Exception):
    """A name stands for an address that may not be asked."""


class _CheckingResolver(AbstractResolver):
    """Resolves a name once, for the connection that is made next; gives either allowed addresses or none."""

    def __init__(self, allowed: Policy) -> None:
        self._allowed = allowed
        self._threads = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="resolve")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look a name up.

        Raises:
            _ForbiddenError: one of its addresses is not allowed. A name that mixes them with others is no honest one.
        """
        ask = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        if not all(self._allowed(ip_address(sockaddr[0])) for *_, sockaddr in found):
            raise _ForbiddenError
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=str(sockaddr[0]), port=port, family=kind, proto=protocol, flags=numeric)
            for kind, _, protocol, _, sockaddr in found
        ]

    async def close(self) -> None:
        """Let threads end when what they wait for has come."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def fetching(
    entries: Iterable[str], *, allowed: Policy = is_public, tls: ssl.SSLContext | None = None
) -> AbstractAsyncContextManager[Fetcher]:
    """Prepare a fetcher.

    Args:
        entries: hosts that may be fetched from, as `read_domains` takes them; empty is none.
        allowed: which network addresses may be asked.
        tls: how hosts prove who they are; by default to the authorities of the system.

    Raises:
        ProductError: an entry is none.
    """
    return _open(read_domains(entries), allowed, tls)


@asynccontextmanager
async def _open(
    domains: tuple[Domain, ...], allowed: Policy, tls: ssl.SSLContext | None
) -> AsyncGenerator[Fetcher, None]:
    connector = aiohttp.TCPConnector(
        resolver=_CheckingResolver(allowed),
        use_dns_cache=False,  # an address is of use to the one connection it was checked for
        limit=CONNECTIONS,
        ssl=tls or True,
    )
    session = aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),  # the deadline is of all media of a request
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": _AGENT, "Accept-Encoding": "identity"},
        auto_decompress=False,  # what arrives is what is counted
    )
    async with session:
        yield Fetcher(domains, session)
