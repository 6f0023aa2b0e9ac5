"""A sample of the damaged checkpoints of `tests/fuzz`, and that the sampler itself sees what it must."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from support.fuzz_corpus import NAMES, SLOW, targets
from support.fuzzing import run_cases


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_whole_is_read(tmp_path: Path, scratch: Path, name: str) -> None:
    target = targets(scratch)[name]
    target.read(target.write(tmp_path, target.whole))


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_read_or_refused(tmp_path: Path, scratch: Path, name: str) -> None:
    outcomes = run_cases(targets(scratch)[name], 5 if name == SLOW else 20, tmp_path, seed=1)
    assert outcomes["refused"] > 0


def crash(_path: Path) -> None:
    os.abort()


def raise_other(_path: Path) -> None:
    raise KeyError("no error of the product")


def grow(_path: Path) -> None:
    bytearray(2**30)


def write_elsewhere(path: Path) -> None:
    Path(path.parent.parent, "elsewhere").write_bytes(b"")


def leave_a_file(path: Path) -> None:
    Path(path.parent, "extracted").write_bytes(b"")


def hang(_path: Path) -> None:
    time.sleep(60)


@pytest.mark.parametrize(
    ("deed", "says"),
    [
        (crash, "ended with"),
        (raise_other, "KeyError"),
        (grow, "MemoryError"),
        (write_elsewhere, "elsewhere"),
        (leave_a_file, "extracted"),
        (hang, "TooSlow"),
    ],
)
def test_a_reader_that_misbehaves_is_caught(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, deed: object, says: str
) -> None:
    monkeypatch.setattr("support.fuzzing.CASE_SECONDS", 0.2)
    target = replace(targets(scratch)["ckpt"], read=deed)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match=says):
        run_cases(target, 1, tmp_path)
