"""Questions to a registry, asked of a real HTTP server."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest

from multimodal_cluster.errors import ClusterError
from multimodal_images import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

STATUS = {
    "/v2/there/manifests/1": 200,
    "/v2/some/folder/there/manifests/1": 200,
    "/v2/absent/manifests/1": 404,
    "/v2/broken/manifests/1": 500,
}


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(STATUS[self.path])
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class names it so
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_tells_what_is_there(address: str) -> None:
    assert registry.has(address, "there", "1")
    assert registry.has(f"{address}/some/folder", "there", "1")
    assert not registry.has(address, "absent", "1")


def test_a_failing_registry_is_not_an_empty_one(address: str) -> None:
    with pytest.raises(ClusterError, match="answers 500"):
        registry.has(address, "broken", "1")


def test_a_silent_registry_names_the_remedy(address: str) -> None:
    host, _, port = address.partition(":")
    with pytest.raises(ClusterError, match="does not answer") as caught:
        registry.has(f"{host}:{int(port) ^ 1}", "there", "1")
    assert "make cluster-up" in caught.value.remedy


def test_a_registry_elsewhere_is_not_asked() -> None:
    """Its credentials are the engine's matter."""
    assert not registry.has("registry.example", "there", "1")
