"""Addresses on the web are fetched with bounds, by a real web server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from multimodal_api.errors import ProductError
from multimodal_client import fetch


class Web(BaseHTTPRequestHandler):
    """Says what a path says."""

    def do_GET(self) -> None:
        kind, _, rest = self.path[1:].partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
            return
        self.send_response(404 if kind == "missing" else 200)
        self.end_headers()
        for _ in range(10 if kind == "slow" else 1):
            self.wfile.write(b"x" * 10)
            self.wfile.flush()
            if kind == "slow":
                time.sleep(0.05)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_address[1]}"
    listening.shutdown()
    listening.server_close()


def test_content_and_redirections(web: str) -> None:
    assert fetch.read(f"{web}/file") == b"x" * 10
    assert fetch.read(f"{web}/to/{web}/file") == b"x" * 10


@pytest.mark.parametrize(
    "target", ["file:///etc/hostname", "ftp://127.0.0.1:1/x", "data:,x", "/to/file:///etc/hostname"]
)
def test_a_redirection_leads_to_the_web_alone(web: str, target: str) -> None:
    with pytest.raises(ProductError, match="cannot be read"):
        fetch.read(f"{web}/to/{target}")


@pytest.mark.parametrize(
    "url", ["{web}/missing", "http://", "http://127.0.0.1:1/", "http://a b/", "ftp://x/y", "file:///etc/hostname"]
)
def test_what_cannot_be_read(web: str, url: str) -> None:
    with pytest.raises(ProductError, match="cannot be read"):
        fetch.read(url.format(web=web))


def test_what_is_too_large(monkeypatch: pytest.MonkeyPatch, web: str) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 9)
    with pytest.raises(ProductError, match="is larger than 9 bytes"):
        fetch.read(f"{web}/file")


def test_what_comes_too_slowly(monkeypatch: pytest.MonkeyPatch, web: str) -> None:
    monkeypatch.setattr(fetch, "FETCH_SECONDS", 0.1)
    with pytest.raises(ProductError, match="is not here after 0 seconds"):
        fetch.read(f"{web}/slow")


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch, web: str) -> None:
    monkeypatch.setattr(fetch, "SILENT_SECONDS", 0.01)
    with pytest.raises(ProductError, match=r"cannot be read: .*timed out"):
        fetch.read(f"{web}/slow")
