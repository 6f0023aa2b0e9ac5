from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prometheus_client.parser import text_string_to_metric_families

from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Stats
from multimodal_server.metrics import Metrics, MetricsServer
from multimodal_server.triton import free_port

STATS = Stats(
    running=2,
    waiting=3,
    kv_positions=512,
    kv_positions_used=48,
    media_cache_hits=5,
    media_cache_misses=7,
    media_cache_bytes=11,
)


@pytest.fixture
def triton_port() -> Iterator[int]:
    """A page like Triton's."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'# HELP nv_x x\n# TYPE nv_x gauge\nnv_x{model="m"} 4\n')

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def scrape(metrics: Metrics, triton_port: int) -> dict[str, float]:
    port = free_port()
    server = MetricsServer(metrics, address="127.0.0.1", port=port, triton_port=triton_port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            page = response.read().decode()
    finally:
        server.close()
    return {
        sample.name + "".join(sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_one_page_has_ours_the_worker_s_and_triton_s(triton_port: int) -> None:
    metrics = Metrics()
    metrics.watch_worker(lambda _: STATS)
    with metrics.request():
        pass
    with metrics.request() as outcome:
        outcome.reason = Reason.REQUEST_REFUSED
    samples = scrape(metrics, triton_port)
    assert samples["multimodal_requests_totalAnswered"] == 1
    assert samples["multimodal_requests_totalRequestRefused"] == 1
    assert samples["multimodal_request_seconds_count"] == 2
    assert samples["multimodal_running_requests"] == 2
    assert samples["multimodal_waiting_requests"] == 3
    assert samples["multimodal_media_cache_hits_total"] == 5
    assert samples["multimodal_media_cache_misses_total"] == 7
    assert samples["multimodal_media_cache_bytes"] == 11
    assert samples["nv_xm"] == 4


def test_a_silent_worker_or_triton_costs_only_its_own_series() -> None:
    metrics = Metrics()
    metrics.watch_worker(lambda _: None)
    samples = scrape(metrics, free_port())
    assert "multimodal_generated_tokens_total" in samples
    assert "multimodal_running_requests" not in samples
    assert not any(name.startswith("nv_") for name in samples)


def test_an_exception_is_counted_too(triton_port: int) -> None:
    metrics = Metrics()

    def failing() -> None:
        with metrics.request() as outcome:
            outcome.reason = Reason.INTERNAL
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        failing()
    assert scrape(metrics, triton_port)["multimodal_requests_totalInternal"] == 1
