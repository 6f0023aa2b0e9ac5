"""Damaged checkpoints, read in a process of their own that may not crash, hang, grow or write elsewhere."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from multimodal_api.errors import ProductError
from support.mutations import mutate

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_api.errors import Failure
    from support.fuzz_corpus import Target

MEMORY: Final = 512 * 2**20
"""Bytes of address space that all readers together may take beyond what the process has when it starts."""
CASE_SECONDS: Final = 5
BATCH_SECONDS: Final = 110

LONGEST: Final = 3000
"""Characters of an error."""

_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FORBIDDEN: Final = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.", "ctypes.", "pty.")
_CHANGES: Final = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod", "os.truncate")


class _TooSlowError(BaseException):
    """No `except Exception` may swallow it."""


def run_cases(target: Target, count: int, folder: Path, *, seed: int = 0) -> dict[str, int]:
    """Read `count` damaged files; the numbers of those that were refused and of those that were read all the same.

    Raises:
        AssertionError: with the number of the first case that did something else.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        report: dict[str, Any] = {"failure": "it did not end"}
        try:
            report = _read_all(target, count, folder, seed)
        except BaseException:  # noqa: BLE001 (the parent is told)
            report = {"failure": traceback.format_exc()}
        finally:
            os.write(writer, json.dumps(report).encode()[:60_000])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        data = answers.read()
    _, status = os.waitpid(child, 0)
    progress = (folder / "case").read_text() if (folder / "case").exists() else "none"
    assert data, f"{target.name}: the process ended with {status} in case {progress}"
    report = json.loads(data)
    assert "failure" not in report, f"{target.name}: case {progress}: {report['failure']}"
    left = sorted(path.name for path in folder.iterdir())
    assert set(left) <= {"case", "input", "input.nemo", "clip", "out"}, left
    return report


def _read_all(target: Target, count: int, folder: Path, seed: int) -> dict[str, int]:
    tempfile.tempdir = str(folder)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(BATCH_SECONDS)
    sys.addaudithook(_guard(folder))
    outcomes = {"refused": 0, "read": 0}
    with (folder / "case").open("w", buffering=1) as log:
        for number in range(count):
            log.seek(0)
            log.write(f"{number:<10}")
            chance = random.Random(zlib.crc32(f"{target.name}.{seed}.{number}".encode()))  # noqa: S311 (repeatable)
            path = target.write(folder, mutate(target.whole, chance, target.others))
            signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
            refusal = _refusal(target, path)
            signal.setitimer(signal.ITIMER_REAL, 0)
            outcomes["read" if refusal is None else "refused"] += 1
            if refusal is not None:
                assert refusal.at, refusal
                assert refusal.remedy, refusal
                assert len(str(refusal)) < LONGEST, str(refusal)[: 2 * LONGEST]
    return outcomes


def _refusal(target: Target, path: Path) -> Failure | None:
    try:
        target.read(path)
    except ProductError as error:
        return error.failure
    return None


def _too_slow(_number: int, _frame: object) -> None:
    raise _TooSlowError


def _guard(folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """Refuse whatever a reader has no business to do."""
    inside = f"{folder}/"

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise AssertionError(f"{event}{arguments}")
        writes = event in _CHANGES or (event == "open" and bool(arguments[2] and arguments[2] & _WRITES))
        if writes and not isinstance(arguments[0], int) and not f"{_place(arguments)}/".startswith(inside):
            raise AssertionError(f"{event} of {arguments[0]!r}")

    return guard


def _place(arguments: tuple[Any, ...]) -> str:
    """The whole path of an event's first argument, which may be relative to a folder that is open, named last."""
    path = Path(os.fsdecode(arguments[0]))
    if not path.is_absolute() and isinstance(arguments[-1], int) and arguments[-1] >= 0:
        path = Path(f"/proc/self/fd/{arguments[-1]}").readlink() / path
    return str(path)
