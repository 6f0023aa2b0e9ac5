"""Media from addresses, of a server on the loopback interface under names of its own."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_server import fetching as module
from multimodal_server.fetching import MAX_ADDRESSES, fetching

PICTURE = b"picture" * 1000
PLACE = "messages[0].content[0].image_url.url"


class Names:
    """A name server: each name has its answers, one after the other; the last one stays."""

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: str, port: int, *rest: Any) -> Any:
        if not host.endswith(".test"):
            return self._real(host, port, *rest)
        self.asked.append(host)
        answers = self.answers.get(host, [["127.0.0.1"]])
        now = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in now
        ]


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    return made


class Host:
    """Gives media, and keeps what it was asked."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[web.Request] = []
        self.at_once = self.most_at_once = 0
        self.begun: asyncio.Queue[None] = asyncio.Queue()
        self.left: asyncio.Queue[None] = asyncio.Queue()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        self.begun.put_nowait(None)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._answer(request)
        except (asyncio.CancelledError, ConnectionError):
            self.left.put_nowait(None)
            raise
        finally:
            self.at_once -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        if "to" in query:
            return web.Response(status=302, headers={"Location": query["to"]})
        if "hops" in query and (left := int(query["hops"])):
            raise web.HTTPTemporaryRedirect(f"/?hops={left - 1}")
        if "status" in query:
            return web.Response(status=int(query["status"]))
        if "zip" in query:
            return web.Response(body=gzip.compress(PICTURE), headers={"Content-Encoding": "gzip"})
        if "silent" in query:
            await asyncio.sleep(60)
        if "endless" in query:
            endless = web.StreamResponse()
            await endless.prepare(request)
            while True:
                await endless.write(PICTURE)
        await asyncio.sleep(0)
        return web.Response(body=PICTURE, headers={"Set-Cookie": "a=b"})


async def started(host: Host, tls: ssl.SSLContext | None = None) -> web.AppRunner:
    app = web.Application()
    app.add_routes([web.get("/{path:.*}", host.answer)])
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    host.port = runner.addresses[0][1]
    return runner


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    made = Host()
    runner = await started(made)
    yield made
    await runner.cleanup()


ENTRIES = ("http://media.test",)


async def fetch(
    host: Host, *addresses: str, entries: tuple[str, ...] = ENTRIES, tls: ssl.SSLContext | None = None
) -> list[bytes]:
    """Fetch from the host, whose port `entries` and addresses leave out."""
    listed = [f"{entry}:{host.port}" for entry in entries]
    wanted = {address.replace(".test", f".test:{host.port}"): PLACE for address in addresses}
    async with fetching(listed, allowed=lambda address: address.is_loopback, tls=tls) as fetcher:
        return list((await fetcher.fetch(wanted)).values())


async def refusal(host: Host, *addresses: str, **how: Any) -> str:
    with pytest.raises(ProductError) as refused:
        await fetch(host, *addresses, **how)
    failure = refused.value.failure
    assert (failure.reason, failure.at) == (Reason.REQUEST_REFUSED, PLACE)
    assert ".test" not in str(failure)
    assert "127." not in str(failure)
    return str(failure)


async def test_media_are_fetched(host: Host) -> None:
    assert await fetch(host, "http://media.test/a.png?x=1#y", "http://media.test/b") == [PICTURE, PICTURE]
    assert sorted(str(request.rel_url) for request in host.asked) == ["/a.png?x=1", "/b"]


async def test_nothing_of_ours_is_sent_along(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine media.test login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    await fetch(host, "http://media.test/?hops=2")
    for request in host.asked:
        assert not {"Cookie", "Authorization", "Referer"} & set(request.headers)


@pytest.mark.parametrize(
    "addresses",
    [
        *(["127.0.0.1"], ["10.0.0.7"], ["169.254.169.254"], ["::1"], ["fd00:ec2::254"], ["::ffff:127.0.0.1"]),
        ["8.8.8.8", "127.0.0.1"],
    ],
    ids=",".join,
)
async def test_a_name_of_an_address_that_is_not_public_is_refused(
    host: Host, names: Names, addresses: list[str]
) -> None:
    names.answers["media.test"] = [addresses]
    async with fetching([f"http://media.test:{host.port}"]) as fetcher:
        with pytest.raises(ProductError, match="leads to a network address that is not public"):
            await fetcher.fetch({f"http://media.test:{host.port}/": PLACE})
    assert host.asked == []


async def test_a_name_is_resolved_once_and_that_address_is_asked(host: Host, names: Names) -> None:
    names.answers["media.test"] = [["127.0.0.1"], ["127.0.0.2"]]
    assert await fetch(host, "http://media.test/") == [PICTURE]
    assert names.asked == ["media.test"]


@pytest.mark.parametrize(("hops", "taken"), [(3, True), (4, False)])
async def test_three_redirects_are_followed(host: Host, hops: int, *, taken: bool) -> None:
    if taken:
        assert await fetch(host, f"http://media.test/?hops={hops}") == [PICTURE]
    else:
        assert "more than 3 addresses" in await refusal(host, f"http://media.test/?hops={hops}")
    assert len(host.asked) == 4


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("http://other.test/", "does not fetch from"),
        ("http://127.0.0.1/", "does not fetch from"),
        ("https://media.test/", "does not fetch from"),
        ("file:///etc/passwd", "does not fetch from"),
        ("http://me:secret@media.test/", "a password"),
        ("http://[oops/", "cannot be fetched"),
    ],
)
async def test_each_redirect_is_checked(host: Host, to: str, words: str) -> None:
    assert words in await refusal(host, f"http://media.test/?to={to.replace(':', '%3A')}")
    assert len(host.asked) == 1


async def test_a_redirect_to_a_name_of_a_private_address_is_refused(host: Host, names: Names) -> None:
    names.answers["other.test"] = [["10.0.0.1"]]
    entries = ("http://media.test", "http://other.test")
    assert "not public" in await refusal(host, "http://media.test/?to=http%3A//other.test/", entries=entries)


async def test_what_is_too_large_is_given_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 2 * len(PICTURE))
    assert await fetch(host, "http://media.test/a", "http://media.test/b") == [PICTURE] * 2
    assert "is too large" in await refusal(host, "http://media.test/?endless")
    assert "is too large" in await refusal(host, *(f"http://media.test/{name}" for name in "abc"))


async def test_what_is_compressed_is_counted_as_it_arrives_and_not_unpacked(host: Host) -> None:
    assert await fetch(host, "http://media.test/?zip") == [gzip.compress(PICTURE)]


async def test_all_media_have_one_deadline(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.2)
    assert "has not arrived" in await refusal(host, "http://media.test/?silent", "http://media.test/a")
    await host.left.get()


async def test_the_number_of_connections_is_bounded(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 2)
    assert len(await fetch(host, *(f"http://media.test/{number}" for number in range(8)))) == 8
    assert host.most_at_once <= 2


async def test_the_number_of_addresses_is_bounded(host: Host) -> None:
    found = await refusal(host, *(f"http://media.test/{number}" for number in range(MAX_ADDRESSES + 1)))
    assert "one address more than 64" in found
    assert "longer than" in await refusal(host, f"http://media.test/{'x' * 5000}")
    assert host.asked == []


async def test_cancelling_ends_the_work(host: Host) -> None:
    task = asyncio.create_task(fetch(host, "http://media.test/?silent", "http://media.test/?endless"))
    for _ in range(2):
        await host.begun.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(2):
        await host.left.get()


@pytest.mark.parametrize("status", [204, 304, 404, 500])
async def test_another_status_is_told(host: Host, status: int) -> None:
    assert f"answered with status {status}" in await refusal(host, f"http://media.test/?status={status}")


async def test_a_host_that_does_not_answer_is_an_error_of_the_part(host: Host, names: Names) -> None:
    names.answers["media.test"] = [["127.0.0.2"]]
    assert "cannot be fetched" in await refusal(host, "http://media.test/")
    assert "cannot be fetched" in await refusal(host, "https://media.test/", entries=("media.test",))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=media.test", "-addext", "subjectAltName=DNS:media.test"]
    subprocess.run([*command, "-keyout", "key", "-out", "certificate"], cwd=folder, check=True, capture_output=True)
    return folder


async def test_https_is_verified_by_name(tls: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls / "certificate", tls / "key")
    host = Host()
    runner = await started(host, context)
    entries = ("media.test", "other.test")
    assert "cannot be fetched" in await refusal(host, "https://media.test/", entries=entries)  # of no known authority
    known = ssl.create_default_context(cafile=tls / "certificate")
    assert await fetch(host, "https://media.test/", entries=entries, tls=known) == [PICTURE]
    assert "cannot be fetched" in await refusal(host, "https://other.test/", entries=entries, tls=known)
    assert len(host.asked) == 1
    await runner.cleanup()
