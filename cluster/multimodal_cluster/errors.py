"""The one error that reaches a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LAST_LINES = 15


class ClusterError(Exception):
    """A part of the cluster failed.

    Attributes:
        part: which part: a daemon's name, or the step that failed.
        problem: what was seen.
        remedy: what the reader can do about it.
        log: where the part wrote what it did, if it writes a log.
    """

    def __init__(self, part: str, problem: str, remedy: str, log: Path | None = None) -> None:
        super().__init__(f"{part}: {problem}")
        self.part = part
        self.problem = problem
        self.remedy = remedy
        self.log = log

    def report(self) -> str:
        """Render everything a person needs on the terminal, with the end of the log."""
        lines = [f"error: {self.part}: {self.problem}", f"  remedy: {self.remedy}"]
        if self.log is not None:
            lines.append(f"  log: {self.log}")
            lines += [f"  | {line}" for line in tail(self.log, LAST_LINES)]
        return "\n".join(lines)


def tail(log: Path, count: int) -> list[str]:
    """Return the last lines of a log; a log that was never written has none."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-count:]
