"""Pods are replaced while people ask, and nobody notices."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from support import heldout
from support.load import ENDED, STOP
from support.platform import attempt, eventually, kubectl
from support.product import Resource, in_client

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ASKED = 5
"""Least answers of every client: each is asked some three times a second where the machine is quiet."""


@contextmanager
def asked_all_the_time(namespace: str, host: str) -> Iterator[None]:
    """Ask over every port, with connections of every kind, and have nothing but the right answer come back."""
    case = heldout.cases("neva")[0]
    told = {"host": host, "model": host, "family": "neva", "text": case.question, "kind": case.kind}
    told["medium"] = base64.b64encode(case.medium).decode()
    begin = in_client(namespace, "support.load")[1:]
    kubectl(*begin, stdin=json.dumps(told))
    yield
    inside = ("exec", "-n", namespace, "client", "--")
    kubectl(*inside, "touch", os.fspath(STOP))
    eventually(lambda: attempt(*inside, "test", "-e", os.fspath(ENDED)).returncode == 0, "the clients have ended")
    ended = json.loads(kubectl(*inside, "cat", os.fspath(ENDED)))
    assert {way: end["failures"] for way, end in ended.items()} == {way: [] for way in ended}
    for way, end in ended.items():
        assert set(end["said"]) == {case.answer}, way
        assert end["said"][case.answer] >= ASKED, way


@pytest.mark.usefixtures("client")
def test_no_request_fails_while_pods_are_replaced(
    resource: Callable[[str], Resource], namespace: str, store: dict[str, str]
) -> None:
    neva = resource("busy").create(engineStore=store)
    neva.until_ready()

    def replaced(before: set[str]) -> bool:
        """Every pod is a new one, and the old ones have ended."""
        left = {pod["metadata"]["uid"] for pod in neva.children("pods")}
        return bool(left) and not left & before and neva.condition()["status"] == "True"

    with asked_all_the_time(namespace, "busy"):
        for replace in (
            lambda: kubectl("rollout", "restart", "-n", namespace, "deploy/busy"),
            lambda: neva.edit(triton={"modelVersion": 2}),
        ):
            before = set(neva.pods("serving"))
            replace()
            eventually(lambda before=before: replaced(before), "the pods are new", seconds=240)  # type: ignore[misc]
    assert len(neva.children("jobs")) <= 1, "nothing was built for it"
