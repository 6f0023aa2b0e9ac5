"""Wiring: kopf triggers and nothing else, arguments, health, and rights that agree with the chart's."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from typing import Any

import pytest
from aiohttp.test_utils import unused_port

from multimodal_operator import health, main
from multimodal_operator.kinds import EVENT, KINDS, RESOURCE, WATCHED_CHILDREN, Json, Kind
from multimodal_operator.operate import SELECTOR


class Seen:
    """Takes events in an operator's place."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str | None, str]] = []

    async def seen(self, kind: Kind, event: str | None, obj: Json) -> None:
        self.events.append((kind.name, event, obj["metadata"]["name"]))


def registered(operator: Any) -> list[Any]:
    return list(main.triggers(operator)._watching.get_all_handlers())


async def test_every_kind_is_watched_and_events_are_only_handed_on() -> None:
    operator = Seen()
    handlers = registered(operator)
    assert {(handler.selector.group, handler.selector.plural or handler.selector.any_name) for handler in handlers} == {
        (kind.group, kind.plural) for kind in (RESOURCE, *WATCHED_CHILDREN)
    }
    for handler in handlers:
        await handler.fn(event={"type": "ADDED", "object": {"metadata": {"name": "x"}}})
    assert sorted(name for name, _event, _x in operator.events) == sorted(
        kind.name for kind in (RESOURCE, *WATCHED_CHILDREN)
    )


def test_kopf_keeps_nothing_on_objects_and_posts_nothing() -> None:
    registry = main.triggers(Seen())  # type: ignore[arg-type]
    for part in (registry._changing, registry._spawning, registry._indexing, registry._webhooks):
        assert list(part.get_all_handlers()) == []
    settings = main.kopf_settings()
    assert not settings.posting.enabled
    assert settings.scanning.disabled
    assert settings.peering.standalone


@pytest.mark.parametrize("kind", [RESOURCE, *WATCHED_CHILDREN], ids=lambda kind: kind.name)
def test_the_server_sends_only_our_children_and_every_resource(kind: Kind) -> None:
    from kopf._cogs.structs.references import Resource  # noqa: PLC0415 -- only this test looks that deep

    resource = Resource(kind.group, kind.api_version.rpartition("/")[2], kind.plural, preferred=True)
    found = main.kopf_settings().watching.label_selectors.collect(resource)
    assert found == ([] if kind is RESOURCE else [SELECTOR])


def test_arguments() -> None:
    images = ["--builder-image", "b", "--server-image", "s"]
    parser = main._parser()
    assert parser.parse_args(["--namespace", "x", "y", *images]).namespace == ["x", "y"]
    assert parser.parse_args(["--all-namespaces", *images]).health_port == 8080
    for wrong in ([*images], ["--all-namespaces"], ["--all-namespaces", "--namespace", "x", *images]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)


async def test_health_tells_of_a_part_that_is_stuck() -> None:
    time = [0.0]
    pulse = health.Health(lambda: time[0])
    pulse.beat("worker 1")
    pulse.beat("worker 2")
    pulse.rest("worker 2")
    time[0] = health.STUCK_SECONDS + 1
    assert pulse.stuck() == ["worker 1"]
    pulse.beat("worker 1")
    assert pulse.stuck() == []


async def test_the_health_port_answers(unused: int) -> None:

    def ask(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{unused}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    pulse = health.Health()
    runner = await health.serve(pulse, unused)
    try:
        assert (await asyncio.to_thread(ask, "/healthz"))[0] == 200
        assert (await asyncio.to_thread(ask, "/readyz"))[0] == 503
        pulse.ready = True
        assert (await asyncio.to_thread(ask, "/readyz"))[0] == 200
        code, page = await asyncio.to_thread(ask, "/metrics")
        assert code == 200
        assert "multimodal_operator_queue_depth" in page
    finally:
        await runner.cleanup()


@pytest.fixture(name="unused")
def _unused() -> int:
    return unused_port()


def test_events_are_written_and_never_watched() -> None:
    assert EVENT not in WATCHED_CHILDREN
    assert "watch" not in EVENT.verbs
    assert len({kind.plural for kind in KINDS}) == len(KINDS)
