"""What the soak has: how long it goes on, and a server of every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from multimodal_api.families import Family
from multimodal_api.resource import Spec
from support import tiny_families
from tests.soak.traffic import Served
from tests.triton.conftest import Server, ready, start

__all__ = ["start"]

SAMPLES = Path(__file__).parents[2] / "examples" / "resources"


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


@pytest.fixture(scope="session")
def served(start: Callable[[Path], Server], tmp_path_factory: pytest.TempPathFactory) -> list[Served]:
    """All six, of the sizes of their samples, one beside the other."""
    store = tmp_path_factory.mktemp("store")
    started = []
    for family in Family:
        sample = yaml.safe_load((SAMPLES / f"{family}-cpu.yaml").read_text())
        spec = Spec.model_validate(sample["spec"])
        engine = tiny_families.build(family, spec.model.llm_type, spec.resolved_limits(), store)
        started.append((family, start(engine)))
    return [Served(family, ready(server)) for family, server in started]
