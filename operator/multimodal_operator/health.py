"""What the kubelet and Prometheus ask: alive, ready, figures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from multimodal_operator.metrics import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Callable

STUCK_SECONDS: Final = 120.0
"""A reconcile cannot take this long: each of its calls has a deadline far below it."""


class Health:
    """Heartbeats of the parts that must not stop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats: dict[str, float] = {}
        self.ready = False
        """The initial lists are complete and the workers run."""

    def beat(self, part: str) -> None:
        """Say that a part got on."""
        self._beats[part] = self._clock()

    def rest(self, part: str) -> None:
        """Say that a part has nothing to do."""
        self._beats.pop(part, None)

    def stuck(self) -> list[str]:
        """List the parts whose last sign of life is too old."""
        now = self._clock()
        return sorted(part for part, at in self._beats.items() if now - at > STUCK_SECONDS)


async def serve(health: Health, port: int) -> web.AppRunner:
    """Start the server; the caller cleans the runner up."""

    async def healthz(_request: web.Request) -> web.Response:
        stuck = health.stuck()
        return web.Response(status=503 if stuck else 200, text=f"stuck: {', '.join(stuck)}" if stuck else "ok")

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(status=200 if health.ready else 503, text="ok" if health.ready else "lists are loading")

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
