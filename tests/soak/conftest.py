"""What the soak has: how long it goes on, and a server of every family."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from multimodal_api.families import Family
from multimodal_api.resource import Spec
from support import tiny_families
from tests.soak.traffic import Served
from tests.triton.conftest import Server, ready, start

__all__ = ["start"]

TREE = Path(__file__).parents[2]
SAMPLES = TREE / "examples" / "resources"
OUT = TREE / "out" / "soak"
"""What is said while it goes on, what failed, and the servers' logs; of the last run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=int, default=30, help="how long the soak goes on")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave it out unless `-m` asks for it: it takes as long as it is told."""
    if "soak" in config.getoption("markexpr"):
        return
    soaking = [item for item in items if item.get_closest_marker("soak")]
    if soaking:
        config.hook.pytest_deselected(items=soaking)
        items[:] = [item for item in items if item not in soaking]


@pytest.fixture(scope="session")
def minutes(request: pytest.FixtureRequest) -> int:
    given: int = request.config.getoption("--minutes", 30)
    return given


class Report:
    """What a person reads, on the terminal and in files."""

    def __init__(self, capture: Any) -> None:
        """Begin with an empty folder."""
        self._capture = capture
        shutil.rmtree(OUT, ignore_errors=True)
        OUT.mkdir(parents=True)

    def tell(self, line: str) -> None:
        """Say how it goes."""
        with self._capture.global_and_fixture_disabled():
            print(line, flush=True)  # noqa: T201 -- a person waits
        self.keep("report.txt", line)

    def failed(self, line: str) -> None:
        """Note a request that failed."""
        self.keep("failures.txt", line)

    def keep(self, name: str, line: str) -> None:
        """Write a line to a file."""
        with (OUT / name).open("a") as file:
            file.write(f"{line}\n")


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    capture: Any = pytestconfig.pluginmanager.getplugin("capturemanager")
    return Report(capture)


@pytest.fixture(scope="session")
def served(
    start: Callable[[Path], Server], report: Report, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Served]]:
    """All six, of the sizes of their samples, one beside the other."""
    store = tmp_path_factory.mktemp("store")
    started: list[tuple[Family, Server]] = []
    try:
        for family in Family:
            sample = yaml.safe_load((SAMPLES / f"{family}-cpu.yaml").read_text())
            spec = Spec.model_validate(sample["spec"])
            engine = tiny_families.build(family, spec.model.llm_type, spec.resolved_limits(), store)
            started.append((family, start(engine)))
        report.tell(f"{time.strftime('%X')} six servers start; what is said here, and their logs, come to {OUT}")
        yield [Served(family, ready(server)) for family, server in started]
    finally:
        for family, server in started:
            shutil.copy(server.folder / "log", OUT / f"{family}.log")
