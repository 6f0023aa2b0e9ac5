"""Which object tells of which moment, and where the time goes between them."""

from __future__ import annotations

from typing import Any

import pytest

from multimodal_demo.moments import ANSWER, Moment, Seen, Timeline, of

RUNNING = [{"state": {"running": {}}}]
ENDED = [{"state": {"terminated": {}}}]
WAITING = [{"state": {"waiting": {"reason": "ContainerCreating"}}}]


def pod(component: str, statuses: list[dict[str, Any]], *, ready: bool = False) -> Seen:
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": str(ready)}]
    labels = {"app.kubernetes.io/component": component}
    status = {"containerStatuses": statuses, "conditions": conditions}
    return Seen("Pod", "neva", {"metadata": {"labels": labels}, "status": status}, 0.0)


def resource(**conditions: str) -> Seen:
    listed = [{"type": kind, "status": status} for kind, status in conditions.items()]
    return Seen("MultimodalDeployment", "neva", {"status": {"conditions": listed}}, 0.0)


@pytest.mark.parametrize(
    ("seen", "moments"),
    [
        (Seen("MultimodalDeployment", "neva", {}, 0.0), []),
        (resource(Accepted="False"), []),
        (resource(Accepted="True", EngineBuilt="False"), [Moment.ACCEPTED]),
        (resource(Accepted="True", EngineBuilt="True"), [Moment.ACCEPTED, Moment.ENGINE_PUBLISHED]),
        (pod("build", WAITING), []),
        (pod("build", RUNNING), [Moment.BUILD_STARTED]),
        (pod("build", ENDED), [Moment.BUILD_STARTED]),
        (pod("build", RUNNING, ready=True), [Moment.BUILD_STARTED]),
        (pod("serving", RUNNING), [Moment.SERVER_STARTED]),
        (pod("serving", RUNNING, ready=True), [Moment.SERVER_STARTED, Moment.POD_READY]),
        (Seen(ANSWER, "neva", {"text": "a red square"}, 0.0), [Moment.FIRST_ANSWER]),
    ],
)
def test_an_object_tells_of_what_lies_behind_it(seen: Seen, moments: list[Moment]) -> None:
    assert of(seen) == moments


def test_a_moment_is_when_it_was_first_seen() -> None:
    timeline = Timeline(100.0)
    assert timeline.see(Moment.ACCEPTED, 101.0)
    assert not timeline.see(Moment.ACCEPTED, 105.0)
    assert timeline.seconds() == {Moment.APPLIED: 0.0, Moment.ACCEPTED: 1.0}
    assert timeline.last == 1.0


def test_steps_add_up_to_the_whole() -> None:
    """Seen in whatever order, told in the story's."""
    timeline = Timeline(0.0)
    for moment, at in ((Moment.ENGINE_PUBLISHED, 9.0), (Moment.BUILD_STARTED, 4.0), (Moment.FIRST_ANSWER, 15.0)):
        timeline.see(moment, at)
    assert timeline.steps() == {
        Moment.BUILD_STARTED: 4.0,
        Moment.ENGINE_PUBLISHED: 5.0,
        Moment.FIRST_ANSWER: 6.0,
    }
