"""What the operator is told on its command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WORKERS: Final = 8
"""Resources that are reconciled at once; each waits for the API most of the time."""
RESYNC_SECONDS: Final = 300.0
"""Time between full lists: they find what a broken watch stream missed."""
FIRST_RESYNCS: Final = (2.0, 10.0, 60.0)
"""Seconds before each of the first full lists: kopf tells of no deletion between ours at the start and its own."""
START_DEADLINE_SECONDS: Final = 120.0
"""How long the start waits for the API server and the CustomResourceDefinition."""
STOP_DEADLINE_SECONDS: Final = 20.0
"""How long the stop waits for reconciles at work; below a pod's usual 30 s of grace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """What children run unless the resource names something else."""

    builder: str
    server: str
    pull_policy: str = "IfNotPresent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of it."""

    images: Images
    namespaces: tuple[str, ...] = ()
    """Empty: all namespaces."""
    health_port: int = 8080
