"""The operator ends after every n-th write, loses events, meets errors: it always comes to the same end."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest
from faults.fake_api import RefusedError
from faults.harness import NAMESPACE, Harness, spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multimodal_operator.kinds import CLAIM, DEPLOYMENT, JOB, RESOURCE, SERVICE, SERVICE_ACCOUNT
from multimodal_operator.kube import Kube

if TYPE_CHECKING:
    from faults.fake_api import Json

A_POLL = 6.0
"""Seconds after which a user's claim, which no watch shows, was looked at again."""
Scenario = Callable[[Harness], Awaitable[None]]


async def create(harness: Harness) -> None:
    harness.claim("checkpoints")
    harness.create("neva", spec())
    await harness.settle()


async def rebuild(harness: Harness) -> None:
    await create(harness)
    harness.edit("neva", {"limits": {"maxInputLen": 8192}})
    await harness.settle()


async def change_ones_mind(harness: Harness) -> None:
    await create(harness)
    harness.world.stuck.add("build")
    harness.edit("neva", {"limits": {"maxInputLen": 8192}})
    await harness.settle()
    harness.world.stuck.clear()
    harness.edit("neva", {"limits": None})
    await harness.settle()


async def delete(harness: Harness) -> None:
    await create(harness)
    harness.delete("neva")
    await harness.settle()


async def delete_during_the_build(harness: Harness) -> None:
    harness.world.stuck.add("build")
    await create(harness)
    harness.delete("neva")
    await harness.settle()


async def share(harness: Harness) -> None:
    harness.claim("checkpoints")
    harness.claim("shared")
    for name in ("anna", "berta"):
        harness.create(name, spec(engineStore={"claimName": "shared"}))
    await harness.settle()
    harness.edit("anna", {"limits": {"maxInputLen": 8192}})
    await harness.settle()
    harness.delete("berta")
    await harness.settle()


async def use_gpus(harness: Harness) -> None:
    harness.claim("checkpoints")
    harness.create("neva", spec(numGpus=1, engine={"backend": "torch"}))
    await harness.settle()
    harness.edit("neva", {"suspend": True})
    await harness.settle()
    harness.edit("neva", {"suspend": False, "serving": {"replicas": 2}})
    await harness.settle()


SCENARIOS = (create, rebuild, change_ones_mind, delete, delete_during_the_build, share, use_gpus)


def end_state(harness: Harness) -> Json:
    """What must not depend on the way: specifications of children, and conditions without their times."""
    children = {
        f"{kind.name}/{obj['metadata']['name']}": obj.get("spec")
        for kind in (CLAIM, SERVICE_ACCOUNT, SERVICE, DEPLOYMENT)
        for obj in harness.api.all(kind)
    }
    children |= {f"Job/{job['metadata']['name']}": None for job in harness.api.all(JOB)}
    ready = {
        obj["metadata"]["name"]: [(c["type"], c["status"]) for c in obj["status"]["conditions"]]
        for obj in harness.api.all(RESOURCE)
    }
    return {"children": children, "conditions": ready}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_a_crash_after_any_write_changes_nothing_in_the_end(scenario: Scenario) -> None:
    calm = Harness()
    await scenario(calm)
    await calm.wait(A_POLL)
    for nth in itertools.count(1):
        harness = Harness()
        harness.api.crash_after = nth
        await scenario(harness)
        await harness.wait(A_POLL)
        if not harness.restarts:
            break
        assert end_state(harness) == end_state(calm), f"after a crash at write {nth}"
        assert sorted(harness.world.builds) == sorted(calm.world.builds), f"after a crash at write {nth}"
    assert nth > 5


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("seed", range(5))
async def test_lost_events_are_found_by_the_next_list(scenario: Scenario, seed: int) -> None:
    calm, lossy = Harness(), Harness(seed=seed, drop=0.3)
    await scenario(calm)
    await scenario(lossy)
    for harness in (calm, lossy):
        await harness.wait(A_POLL)
    assert end_state(lossy) == end_state(calm)


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_errors_of_the_server_are_outlived(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multimodal_operator.kube.BACKOFF_SECONDS", (0.0,))
    calm, rough = Harness(), Harness()
    count = itertools.count()

    def fail(method: str, path: str) -> None:
        if next(count) % 3:
            raise RefusedError(code, "Injected", f"{method} {path}")

    await rebuild(calm)
    rough.api.before = fail
    await rebuild(rough)
    assert end_state(rough) == end_state(calm)


async def test_an_outage_is_outlived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multimodal_operator.kube.BACKOFF_SECONDS", (0.0,))
    calm, rough = Harness(), Harness()
    failures = iter([True] * 40)

    def fail(method: str, path: str) -> None:
        if next(failures, False):
            raise ConnectionResetError(f"{method} {path}")

    await create(calm)
    rough.api.before = fail
    await create(rough)
    assert next(failures, None) is None
    assert end_state(rough) == end_state(calm)


async def test_a_conflict_loses_no_finalizer_of_others() -> None:
    harness = Harness()
    harness.claim("checkpoints")
    harness.create("neva", spec())
    merge = Kube.merge

    async def slow_merge(self: Kube, *args: object) -> Json:
        if "others/one" not in (harness.api.find(RESOURCE, NAMESPACE, "neva") or {})["metadata"].get("finalizers", ()):
            harness.api.edit(RESOURCE, NAMESPACE, "neva", {"metadata": {"finalizers": ["others/one"]}})
        return await merge(self, *args)  # type: ignore[arg-type]

    harness.kube.merge = slow_merge.__get__(harness.kube)  # type: ignore[method-assign]
    await harness.settle()
    found = harness.api.find(RESOURCE, NAMESPACE, "neva")
    assert found is not None
    assert found["metadata"]["finalizers"] == ["others/one", "multimodal.dev/cleanup"]


EDITS = st.sampled_from(
    [
        {"limits": {"maxInputLen": 8192}},
        {"limits": {"maxInputLen": 4096}},
        {"serving": {"replicas": 2}},
        {"serving": {"replicas": 0}},
        {"serving": {"nodeSelector": {"disk": "fast"}}},
        {"serving": {"nodeSelector": None}},
        {"serving": {"env": [{"name": "A", "value": "1"}]}},
        {"serving": {"env": None}},
        {"triton": {"httpPort": 9500}},
        {"triton": {"httpPort": 8000}},
        {"triton": {"modelName": "other"}},
        {"suspend": True},
        {"suspend": False},
        {"deletionPolicy": "Retain"},
        {"deletionPolicy": "Delete"},
        {"numGpus": 1, "engine": {"backend": "torch"}},
        {"numGpus": 0},
        {"model": {"modality": "audio"}},  # contradicts: nothing is done until it is taken back
        {"model": {"modality": None}},
    ]
)


def fill_in(obj: Json) -> Json:
    """Two ways to say one thing: what is false or a default may be written or left out."""
    plain = {key: value for key, value in obj.items() if value not in ({}, None)}
    return {key: fill_in(value) if isinstance(value, dict) else in_order(value) for key, value in plain.items()}


def in_order(value: object) -> object:
    """Apply merges a list of ports by their numbers, wherever they stand."""
    if isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value):
        return sorted(value, key=lambda item: str(item["name"]))
    return value


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(edits=st.lists(st.tuples(EDITS, st.integers(0, 6)), max_size=6), seed=st.integers(0, 1000))
async def test_the_end_does_not_depend_on_the_way(edits: list[tuple[Json, int]], seed: int) -> None:
    walked = Harness(seed=seed)
    await create(walked)
    for edit, steps in edits:
        walked.edit("neva", edit)
        for _step in range(steps):  # the next edit comes in the middle of things
            await walked._operate()
            walked.world.step()
    await walked.wait(A_POLL)
    writes = walked.api.writes
    await walked.resync()
    await walked.settle()
    assert walked.api.writes == writes, "a second look wrote something"

    stored = walked.api.find(RESOURCE, NAMESPACE, "neva")
    assert stored is not None
    if stored["spec"]["model"].get("modality") == "audio":
        return  # what was before stays, whatever it was
    direct = Harness()
    direct.claim("checkpoints")
    direct.create("neva", stored["spec"])
    await direct.wait(A_POLL)
    there, here = end_state(walked), end_state(direct)
    for state in (there, here):  # witnesses may have gone, and a Deployment outlives its suspension
        state["children"] = {name: obj for name, obj in state["children"].items() if not name.startswith("Job/")}
    if stored["spec"].get("suspend"):
        there["children"].pop("Deployment/neva", None)
        there["conditions"] = here["conditions"] = {}
    assert fill_in(there) == fill_in(here)
