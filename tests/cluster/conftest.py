"""Tests on the real cluster find it by themselves: `make cluster-up` is all they need before."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multimodal_api import labels
from support.platform import apply, attempt, kubectl
from support.product import (
    Resource,
    claim,
    dump,
    install_operator,
    make_namespace,
    start_client,
    uninstall_operator,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def _cluster_environment() -> None:
    """Take the variables that `python3 cluster env` prints, as a person's shell does."""
    script = f'eval "$({sys.executable} {ROOT / "cluster"} env)" && env -0'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    os.environ.update(pair.split("=", 1) for pair in done.stdout.split("\0") if pair)


@pytest.fixture(name="namespace", scope="session")
def _product_namespace() -> Iterator[str]:
    """Give a namespace with the tiny checkpoint and an operator of its own, from the chart.

    Tests share it and name their resources differently.
    """
    name = f"product-{os.getpid()}"
    make_namespace(name)
    install_operator(name)
    yield name
    attempt("delete", labels.SHORT_NAME, "-n", name, "--all", "--timeout=120s", seconds=130)
    uninstall_operator(name)
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(name="store", scope="session")
def _store(namespace: str) -> dict[str, str]:
    """Give an engine store that tests share: what one of them built is there for all that come later."""
    apply(claim(namespace, "engines"))
    return {"claimName": "engines"}


@pytest.fixture(name="client", scope="session")
def _client(namespace: str) -> None:
    """Have a pod from which tests ask."""
    start_client(namespace)


@pytest.fixture(name="resource")
def _resource(namespace: str, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Resource]]:
    """Give a maker of resources that are gone when the test is over, with all about them if it failed."""
    made: list[Resource] = []

    def make(name: str) -> Resource:
        made.append(Resource(namespace, name))
        return made[-1]

    failed = request.session.testsfailed
    yield make
    if request.session.testsfailed > failed:
        print(dump(namespace))  # noqa: T201 -- pytest shows it with the failure
    for one in made:
        one.delete(wait=False)
