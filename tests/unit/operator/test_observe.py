"""What no watch shows is asked for, but not more often than it is worth."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from multimodal_api import labels
from multimodal_api.build import Progress, Stage
from multimodal_operator.inquiries import Inquiries
from multimodal_operator.kinds import CLAIM, JOB, POD, RESOURCE, Json, Kind
from multimodal_operator.mirror import Mirror
from multimodal_operator.observe import Observer
from multimodal_operator.snapshot import Purpose
from multimodal_operator.want import store_digest
from support.snapshots import IMAGES, MODEL, resource, want


class Asked:
    """An API with one claim, and a pod that builds."""

    def __init__(self) -> None:
        self.claims: dict[str, Json] = {}
        self.calls: list[str] = []
        self.progress: Progress | None = Progress(stage=Stage.CONVERT, percent=10)

    async def get(self, kind: Kind, _namespace: str, name: str) -> Json | None:
        assert kind is CLAIM
        self.calls.append(name)
        return self.claims.get(name)

    async def read(self, ip: str) -> Progress | None:
        self.calls.append(ip)
        return self.progress


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


def a_claim(name: str, phase: str) -> Json:
    return {"metadata": {"name": name, "namespace": "test", "uid": f"uid-{name}"}, "status": {"phase": phase}}


def observer() -> tuple[Observer, Mirror, Asked, Clock]:
    mirror, asked, clock = Mirror(), Asked(), Clock()
    meta = {"name": "neva", "namespace": "test", "uid": "uid-of-neva", "resourceVersion": "1"}
    obj = {"metadata": meta | {"creationTimestamp": "2026-11-23T12:00:00Z"}, "spec": {"numGpus": 0, "model": MODEL}}
    mirror.put(RESOURCE, obj)
    return Observer(mirror, Inquiries(asked, asked, clock), IMAGES), mirror, asked, clock  # type: ignore[arg-type]


async def test_what_does_not_exist_is_not_seen() -> None:
    eye, *_ = observer()
    assert await eye.snapshot("test", "other") is None


async def test_a_missing_claim_is_asked_for_every_few_seconds_a_bound_one_seldom() -> None:
    eye, _mirror, asked, clock = observer()
    for _ in range(3):
        seen = await eye.snapshot("test", "neva")
        assert seen is not None
        assert "checkpoints" not in seen.claims
    assert asked.calls == ["checkpoints"]
    asked.claims["checkpoints"] = a_claim("checkpoints", "Bound")
    clock.time = 5
    seen = await eye.snapshot("test", "neva")
    assert seen is not None
    assert seen.claims["checkpoints"].phase == "Bound"
    clock.time = 50
    await eye.snapshot("test", "neva")
    assert len(asked.calls) == 2
    clock.time = 66
    await eye.snapshot("test", "neva")
    assert len(asked.calls) == 3


async def test_a_claim_that_is_watched_is_never_asked_for() -> None:
    eye, mirror, asked, _clock = observer()
    for name in ("checkpoints", "neva-engines"):
        claim = a_claim(name, "Pending")
        claim["metadata"] |= {"labels": {labels.LABEL_INSTANCE: "neva"}, "resourceVersion": "2"}
        mirror.put(CLAIM, claim)
    seen = await eye.snapshot("test", "neva")
    assert seen is not None
    assert set(seen.claims) == {"checkpoints", "neva-engines"}
    assert asked.calls == []


def put_build(mirror: Mirror, container: Json) -> None:
    """A Job that the API server has no verdict on, and its pod with the container in a state."""
    wanted = want(resource())
    marks = {
        labels.LABEL_INSTANCE: "neva",
        labels.LABEL_COMPONENT: Purpose.BUILD.value,
        labels.LABEL_ENGINE_KEY: wanted.key,
        labels.LABEL_ENGINE_STORE: store_digest(wanted.store),
    }
    meta = {"namespace": "test", "labels": marks, "creationTimestamp": "2026-11-23T12:00:00Z", "resourceVersion": "3"}
    mirror.put(JOB, {"metadata": meta | {"name": wanted.job_name(Purpose.BUILD), "uid": "uid-of-job"}})
    owner = [{"uid": "uid-of-job", "controller": True}]
    status = {"phase": "Running", "podIP": "192.0.2.7", "containerStatuses": [{"state": container}]}
    mirror.put(POD, {"metadata": meta | {"name": "p", "uid": "uid-of-pod", "ownerReferences": owner}, "status": status})


@pytest.mark.parametrize(("code", "succeeded"), [(0, True), (1, False), (3, False)])
async def test_a_build_is_over_when_its_pod_is(code: int, succeeded: bool) -> None:  # noqa: FBT001 -- a table
    """The Job's own controller takes two seconds longer to say that it is complete."""
    eye, mirror, *_ = observer()
    put_build(mirror, {"terminated": {"exitCode": code, "finishedAt": "2026-11-23T12:00:09Z"}})
    seen = await eye.snapshot("test", "neva")
    assert seen is not None
    (job,) = seen.jobs
    assert job.succeeded is succeeded
    assert job.finished == (datetime(2026, 11, 23, 12, 0, 9, tzinfo=UTC) if succeeded else None)


async def test_a_build_is_asked_for_its_progress_and_its_silence_is_no_error() -> None:
    eye, mirror, asked, clock = observer()
    asked.claims["checkpoints"] = a_claim("checkpoints", "Bound")
    put_build(mirror, {"running": {}})
    for _ in range(2):
        seen = await eye.snapshot("test", "neva")
        assert seen is not None
        assert seen.progress == asked.progress
    assert asked.calls.count("192.0.2.7") == 1
    before, asked.progress = asked.progress, None
    clock.time = 2
    seen = await eye.snapshot("test", "neva")
    assert seen is not None
    assert seen.progress == before, "the last answer stands"
    assert asked.calls.count("192.0.2.7") == 2
