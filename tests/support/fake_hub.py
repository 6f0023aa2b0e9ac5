"""A small Hugging Face Hub on the loopback: files, a token for the gated repositories, and failures on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_MODEL = re.compile(r"/api/models/([^/]+/[^/]+)/revision/(.+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class FakeHub:
    """What it holds, and what it was asked."""

    repositories: Mapping[str, Mapping[str, bytes]]
    token: str | None = None
    """When set, every request must carry it."""
    failures: int = 0
    """Requests that are still answered by 503."""
    url: str = ""
    asked: list[str] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join(timeout=10)

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = request.path.partition("?")[0]
        self.asked.append(f"{request.command} {path}")
        if self.failures:
            self.failures -= 1
            _send(request, 503, b"later", body=body)
        elif self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            _send(request, 401, b"no", body=body, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif (found := _MODEL.fullmatch(path)) and found[1] in self.repositories:
            files = self.repositories[found[1]]
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            described = {"id": found[1], "modelId": found[1], "sha": COMMIT, "siblings": siblings, "tags": []}
            _send(request, 200, json.dumps(described).encode(), body=body)
        elif (found := _FILE.fullmatch(path)) and found[3] in self.repositories.get(found[1], {}):
            content = self.repositories[found[1]][found[3]]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            _send(request, 200, content, body=body, headers=headers)
        else:
            _send(request, 404, b"", body=body, headers={"X-Error-Code": "RepoNotFound"})


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    content: bytes,
    *,
    body: bool,
    headers: Mapping[str, str] | None = None,
) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    if body:
        request.wfile.write(content)
