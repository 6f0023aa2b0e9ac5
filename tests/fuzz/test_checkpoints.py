"""Ten thousand damaged checkpoints: each is read, or refused in the project's own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.fuzz_corpus import NAMES, SLOW, targets
from support.fuzzing import run_cases

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fuzz

CASES = 10_000
SLOW_CASES = 200


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_read_or_refused(tmp_path: Path, scratch: Path, name: str) -> None:
    count = SLOW_CASES if name == SLOW else -(-CASES // (len(NAMES) - 1))
    outcomes = run_cases(targets(scratch)[name], count, tmp_path)
    assert outcomes["refused"] > count // 10
