"""`mmd status`: resources as a table, one resource with its conditions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

_HEAD: Final = ("NAMESPACE", "NAME", "PHASE", "READY", "MODEL", "ENGINE", "AGE")
_CONDITION_HEAD: Final = ("CONDITION", "STATUS", "REASON", "MESSAGE")
_UNITS: Final = (("d", 86_400), ("h", 3600), ("m", 60))


def render(resources: Sequence[Mapping[str, Any]], *, details: bool, now: datetime | None = None) -> str:
    """Draw the table.

    Args:
        resources: as the API server gives them.
        details: whether each resource's conditions follow.
        now: for the ages.
    """
    rows = [_row(resource, now or datetime.now(UTC)) for resource in resources]
    parts = [_table(_HEAD, rows)]
    if details:
        for resource in resources:
            status = resource.get("status", {})
            conditions = [
                tuple(str(condition.get(key, "")) for key in ("type", "status", "reason", "message"))
                for condition in status.get("conditions", ())
            ]
            parts += ["", _table(_CONDITION_HEAD, conditions)]
            if status.get("url"):
                parts += ["", f"in the cluster: {status['url']}"]
    return "\n".join(parts)


def _row(resource: Mapping[str, Any], now: datetime) -> tuple[str, ...]:
    meta, status = resource["metadata"], resource.get("status", {})
    ready = {condition["type"]: condition["status"] for condition in status.get("conditions", ())}.get("Ready")
    return (
        meta["namespace"],
        meta["name"],
        status.get("phase", "-"),
        ready or "-",
        resource["spec"]["model"]["type"],
        status.get("engine", {}).get("key", "-")[:8],
        _age(now - datetime.fromisoformat(meta["creationTimestamp"])),
    )


def _age(delta: timedelta) -> str:
    seconds = int(delta.total_seconds())
    for unit, size in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(0, seconds)}s"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *rows)
    ]
    return "\n".join(lines)
