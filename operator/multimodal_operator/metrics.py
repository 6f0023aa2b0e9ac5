"""Prometheus metrics of the operator; the reasons in their labels are those of conditions and events."""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

if TYPE_CHECKING:
    from multimodal_api.status import BuildStatus

REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

RECONCILES: Final = Counter(
    "multimodal_operator_reconciles", "Finished reconciles, by outcome.", ("outcome",), registry=REGISTRY
)
RECONCILE_SECONDS: Final = Histogram(
    "multimodal_operator_reconcile_seconds",
    "Time of one reconcile.",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    registry=REGISTRY,
)
ERRORS: Final = Counter(
    "multimodal_operator_errors", "Reconciles that met an error, by reason.", ("reason",), registry=REGISTRY
)
QUEUE_DEPTH: Final = Gauge("multimodal_operator_queue_depth", "Resources that wait for a worker.", registry=REGISTRY)
QUEUE_SECONDS: Final = Histogram(
    "multimodal_operator_queue_seconds",
    "Time from when a resource was due until a worker took it.",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    registry=REGISTRY,
)
API_CALLS: Final = Counter(
    "multimodal_operator_api_calls",
    "Calls to the API server, by verb, kind and status code.",
    ("verb", "kind", "code"),
    registry=REGISTRY,
)
WRITES: Final = Counter(
    "multimodal_operator_writes",
    "Changes that were written, by action and kind.",
    ("action", "kind"),
    registry=REGISTRY,
)
RESOURCES: Final = Gauge(
    "multimodal_operator_resources", "Resources by phase and reason.", ("phase", "reason"), registry=REGISTRY
)
BUILD_SECONDS: Final = Histogram(
    "multimodal_operator_build_seconds",
    "Time of finished build Jobs, by outcome.",
    ("outcome",),
    buckets=(3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000),
    registry=REGISTRY,
)
RESYNC_TIME: Final = Gauge(
    "multimodal_operator_last_resync_timestamp_seconds", "Time of the last finished full list.", registry=REGISTRY
)


class Census:
    """Counts resources by phase and reason."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str]] = {}
        self._tally: Tally[tuple[str, str]] = Tally()

    def count(self, key: str, phase: str, reason: str) -> None:
        """Note how a resource is."""
        self.forget(key)
        self._known[key] = (phase, reason)
        self._set((phase, reason), 1)

    def forget(self, key: str) -> None:
        """Note that a resource is gone."""
        if (before := self._known.pop(key, None)) is not None:
            self._set(before, -1)

    def _set(self, state: tuple[str, str], change: int) -> None:
        self._tally[state] += change
        RESOURCES.labels(*state).set(self._tally[state])


CENSUS: Final = Census()


def observe_build(before: BuildStatus | None, after: BuildStatus | None, *, built: bool) -> None:
    """Measure a build in the pass that first reports its end."""
    if after is None or after.started_at is None or after.finished_at is None:
        return
    if before is not None and before.finished_at == after.finished_at:
        return
    seconds = (after.finished_at - after.started_at).total_seconds()
    BUILD_SECONDS.labels("built" if built else "failed").observe(seconds)
