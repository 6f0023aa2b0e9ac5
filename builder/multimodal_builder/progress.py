"""What a running build is at: kept in memory, answered over HTTP, and timed."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final

from multimodal_api.build import PROGRESS_PATH, Progress, Stage
from multimodal_api.logs import FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

_REQUEST_SECONDS: Final = 5
_PERCENT: Final = 100
_POLL_SECONDS: Final = 0.05
"""How soon the thread sees that the build has ended: the pod's end waits for it."""


class Tracker:
    """The current stage and how far it is; written by the build, read by the HTTP thread."""

    def __init__(self) -> None:
        self.stage = Stage.INSPECT
        self.seconds: dict[str, float] = {}
        """Wall time per finished stage."""
        self._done = 0
        self._total = 0

    @contextmanager
    def during(self, stage: Stage, *, total: int = 0) -> Iterator[None]:
        """Be in a stage; `total` is its size in bytes."""
        self.stage, self._done, self._total = stage, 0, total
        log.info("stage started", extra={FIELDS: {"stage": stage.value}})
        start = time.monotonic()
        yield
        self.seconds[stage.value] = round(time.monotonic() - start, 3)
        log.info("stage finished", extra={FIELDS: {"stage": stage.value, "seconds": self.seconds[stage.value]}})

    def expect(self, total: int) -> None:
        """Set the size of the current stage, in bytes."""
        self._total = total

    def advance(self, count: int) -> None:
        """Count bytes."""
        self._done += count

    def progress(self) -> Progress:
        """Report."""
        done, total = self._done, self._total
        percent = min(_PERCENT, _PERCENT * done // total) if total else 0
        return Progress(stage=self.stage, percent=percent, done_bytes=done, total_bytes=total)


@contextmanager
def serve_progress(tracker: Tracker, port: int) -> Iterator[None]:
    """Answer `GET /progress` while the block runs. A port that is taken is logged: no build fails for a report."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_SECONDS

        def do_GET(self) -> None:
            """Answer."""
            if self.path != PROGRESS_PATH:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            body = tracker.progress().model_dump_json(by_alias=True).encode()
            with suppress(ConnectionError):  # who asked waited no longer, and asks again
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's name)
            """Say nothing: the operator asks every few seconds."""

    try:
        server = ThreadingHTTPServer(("", port), Handler)
    except OSError as error:
        log.warning("no progress report", extra={FIELDS: {"port": port, "error": str(error)}})
        yield
        return
    server.daemon_threads = True
    serve = threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,), name="progress", daemon=True)
    serve.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
