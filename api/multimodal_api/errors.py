"""The one shape of an error: it names the place, the problem and the way out."""

from __future__ import annotations

from multimodal_api.base import OpenModel
from multimodal_api.reasons import Reason


class Failure(OpenModel):
    """What went wrong, as data: it travels in termination messages, conditions, events and on the wire."""

    reason: Reason
    """One of the closed list."""
    at: str
    """Field, file, member or tensor, most specific last."""
    problem: str
    """What is wrong, with the value."""
    remedy: str
    """What the reader can do about it."""

    def __str__(self) -> str:
        """Give the one line that people read."""
        return f"{self.at}: {self.problem}; {self.remedy}"


class ProductError(Exception):
    """An expected failure, raised where it is found and shown unchanged at every rim."""

    def __init__(self, reason: Reason, *, at: str, problem: str, remedy: str) -> None:
        self.failure = Failure(reason=reason, at=at, problem=problem, remedy=remedy)
        super().__init__(str(self.failure))
