"""Prometheus metrics of the server, and the one page that carries them together with Triton's own."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from multimodal_server.later import Later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric

    from multimodal_api.reasons import Reason
    from multimodal_api.worker_protocol import Stats

PREFIX: Final = "multimodal"
SCRAPE_SECONDS: Final = 2.0
"""How long a scrape waits for Triton, and for the worker: less than Prometheus' own ten seconds."""
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(slots=True)
class Outcome:
    """How a request ended; the caller sets it."""

    reason: Reason | None = None
    """None is an answer."""


class Metrics:
    """All series of the front."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.later = Later()
        """Counts, and whatever else is written down of a request."""
        self._requests = Counter(
            f"{PREFIX}_requests",
            "Requests, by how they ended: `Answered`, or a reason",
            ["outcome"],
            registry=self.registry,
        )
        self._seconds = self._histogram("request", "From a request's arrival to its last token")
        self.queue = self._histogram("queue", "Waiting for a place among the running requests")
        self.encode = self._histogram("encode", "Media encoding, or waiting for it")
        self.first_token = self._histogram("time_to_first_token", "From the checked request to its first token")
        self.inter_token = self._histogram("inter_token", "Between two tokens of an answer")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, media included")
        self.media_tokens = self._counter("media_tokens", "Tokens of prompts that media took")
        self.generated_tokens = self._counter("generated_tokens", "Tokens of answers")
        self.triton_restarts = self._counter("triton_restarts", "Starts of Triton beside the engine after it had ended")

    @contextmanager
    def request(self) -> Iterator[Outcome]:
        """Time and count one request."""
        begun = time.monotonic()
        outcome = Outcome()
        try:
            yield outcome
        finally:
            self.later.count(partial(self._count, time.monotonic() - begun, outcome.reason or "Answered"))

    def page(self) -> bytes:
        """Give all series, with every request counted that has ended before."""
        self.later.settle()
        return generate_latest(self.registry)

    def watch_worker(self, ask: Callable[[float], Stats | None]) -> None:
        """Add what the worker counts, asked at every scrape."""
        self.registry.register(_WorkerCollector(ask))

    def _count(self, seconds: float, outcome: str) -> None:
        self._seconds.observe(seconds)
        self._requests.labels(outcome).inc()

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"{PREFIX}_{name}_seconds", text, buckets=_SECONDS, registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, registry=self.registry)


class _WorkerCollector:
    def __init__(self, ask: Callable[[float], Stats | None]) -> None:
        self._ask = ask

    def describe(self) -> list[Metric]:
        """Name nothing in advance, so that registering does not ask the worker."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Ask, and give series; none when the worker does not answer."""
        stats = self._ask(SCRAPE_SECONDS)
        if stats is None:
            return
        yield GaugeMetricFamily(f"{PREFIX}_running_requests", "Requests that have a place", stats.running)
        yield GaugeMetricFamily(f"{PREFIX}_waiting_requests", "Requests that wait for a place", stats.waiting)
        yield GaugeMetricFamily(f"{PREFIX}_kv_positions", "Positions that the KV memory holds", stats.kv_positions)
        yield GaugeMetricFamily(f"{PREFIX}_kv_positions_used", "Positions that are taken", stats.kv_positions_used)
        yield CounterMetricFamily(f"{PREFIX}_media_cache_hits", "Frames found encoded", stats.media_cache_hits)
        yield CounterMetricFamily(f"{PREFIX}_media_cache_misses", "Frames not found", stats.media_cache_misses)
        yield GaugeMetricFamily(f"{PREFIX}_media_cache_bytes", "Size of the rows kept", stats.media_cache_bytes)


class MetricsServer:
    """Serves `/metrics` from a thread of its own."""

    def __init__(self, metrics: Metrics, *, address: str, port: int, triton_port: int) -> None:
        """Listen.

        Args:
            metrics: ours.
            address: to listen on.
            port: to listen on.
            triton_port: where Triton's own page is, on the loopback interface.
        """
        self._metrics = metrics
        self._triton_port = triton_port
        page = self.page

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                """Answer every path: there is one page."""
                body = page()
                self.send_response(http.client.OK)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
                """Scrapes are no news."""

        self._server = ThreadingHTTPServer((address, port), Handler)
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def page(self) -> bytes:
        """Give our series, then Triton's when it answers."""
        return self._metrics.page() + self._triton_page()

    def close(self) -> None:
        """Have all written down, and stop listening."""
        self._metrics.later.settle()
        self._metrics.later.flush()
        self._server.shutdown()
        self._server.server_close()

    def _triton_page(self) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._triton_port, timeout=SCRAPE_SECONDS)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return b""  # Triton is starting or stopping
        finally:
            connection.close()
