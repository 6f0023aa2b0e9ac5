"""What happens between `kubectl apply` and the first answer, read from the objects as they change."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from multimodal_api import labels
from multimodal_api.status import ConditionStatus, ConditionType

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


ANSWER: Final = "Answer"


class Moment(StrEnum):
    """A moment of the story, in order; the value is what people read."""

    APPLIED = "applied"
    ACCEPTED = "accepted"
    BUILD_STARTED = "build started"
    ENGINE_PUBLISHED = "engine published"
    SERVER_STARTED = "server started"
    POD_READY = "pod ready"
    FIRST_ANSWER = "first answer"


@dataclass(frozen=True, slots=True)
class Seen:
    """Something that we learned.

    Attributes:
        kind: of the object, as Kubernetes names it; or `ANSWER`.
        name: of the resource that it belongs to.
        content: the object; or the answer's text.
        at: when, on the monotonic clock, in seconds.
    """

    kind: str
    name: str
    content: dict[str, Any]
    at: float


class Timeline:
    """When each moment was first seen."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._seen: dict[Moment, float] = {Moment.APPLIED: 0.0}

    def see(self, moment: Moment, at: float) -> bool:
        """Note a moment, unless it was noted before; tell whether it was new."""
        if moment in self._seen:
            return False
        self._seen[moment] = at - self._began
        return True

    def seconds(self) -> dict[Moment, float]:
        """Give seconds since the beginning, in the story's order."""
        return {moment: self._seen[moment] for moment in Moment if moment in self._seen}

    @property
    def last(self) -> float:
        """Seconds until the last moment."""
        return max(self._seen.values())

    def steps(self) -> dict[Moment, float]:
        """Give the seconds that led to each moment, from the one before it."""
        seen = list(self.seconds().items())
        return {moment: at - before for (_, before), (moment, at) in pairwise(seen)}


def of(seen: Seen) -> list[Moment]:
    """Give the moments that an object has behind it."""
    match seen.kind:
        case labels.KIND:
            return list(_of_resource(seen.content))
        case "Pod":
            return list(_of_pod(seen.content))
        case _:
            return [Moment.FIRST_ANSWER]


def _of_resource(resource: Mapping[str, Any]) -> Iterator[Moment]:
    if condition(resource, ConditionType.ACCEPTED).get("status") == ConditionStatus.TRUE:
        yield Moment.ACCEPTED
    if condition(resource, ConditionType.ENGINE_BUILT).get("status") == ConditionStatus.TRUE:
        yield Moment.ENGINE_PUBLISHED


def _of_pod(pod: Mapping[str, Any]) -> Iterator[Moment]:
    serves = pod["metadata"]["labels"][labels.LABEL_COMPONENT] == "serving"
    status = pod.get("status", {})
    states = [each.get("state", {}) for each in status.get("containerStatuses", [])]
    if any("running" in state or "terminated" in state for state in states):
        yield Moment.SERVER_STARTED if serves else Moment.BUILD_STARTED
    if serves and any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", [])):
        yield Moment.POD_READY


def condition(resource: Mapping[str, Any], kind: ConditionType) -> Mapping[str, Any]:
    """Give one of its conditions, empty when there is none."""
    conditions: list[Mapping[str, Any]] = resource.get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == kind), {})
