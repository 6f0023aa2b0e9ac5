"""Locks from pyproject.toml's extras and groups."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from multimodal_cluster.commands import run
from multimodal_locks import uv

if TYPE_CHECKING:
    from multimodal_cluster.paths import Paths

ROOT: Final = uv.LOCKS.parent
# The images' base, Debian 12: PyTriton's wheels ask for glibc 2.35.
PLATFORM: Final = "x86_64-manylinux_2_36"
PYTHON: Final = "3.11"
COMPILE_DEADLINE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Lock:
    """One lock file.

    Attributes:
        name: of the file, without its ending.
        selection: what of pyproject.toml it covers, as arguments of `uv pip compile`.
    """

    name: str
    selection: tuple[str, ...]

    @property
    def file(self) -> Path:
        """Where it lies."""
        return uv.LOCKS / f"{self.name}.txt"


LOCKS: Final = (
    Lock("build", ("--group", "pyproject.toml:build")),
    Lock("operator", ("pyproject.toml", "--extra", "operator")),
    # Triton the compiler (640 MB) is left out: torch needs it for torch.compile only, and nothing here compiles.
    Lock("modeling", ("pyproject.toml", "--extra", "builder", "--extra", "worker", "--no-emit-package", "triton")),
    Lock("front", ("pyproject.toml", "--extra", "server")),
    Lock("dev", ("pyproject.toml", "--all-extras", "--group", "dev")),
    # After dev, whose versions it takes: two servers are compared, not two versions of torch.
    Lock(
        "serving",
        (
            *("pyproject.toml", "--extra", "recipes", "--extra", "modeling", "--group", "pyproject.toml:serving"),
            *("--constraint", "locks/dev.txt"),
        ),
    ),
)


def compile_all(paths: Paths, *, upgrade: bool) -> None:
    """Write every lock."""
    for lock in LOCKS:
        _compile(lock, lock.file, paths, upgrade=upgrade)


def stale(paths: Paths) -> list[Lock]:
    """List the locks that do not follow from pyproject.toml."""
    return [lock for lock in LOCKS if _would_change(lock, paths)]


def _would_change(lock: Lock, paths: Paths) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / lock.file.name
        shutil.copy(lock.file, again)
        _compile(lock, again, paths, upgrade=False)
        return again.read_bytes() != lock.file.read_bytes()


def _compile(lock: Lock, file: Path, paths: Paths, *, upgrade: bool) -> None:
    command = [
        *(str(uv.program(paths)), "--directory", str(ROOT), "pip", "compile", "--quiet"),
        *("--python-platform", PLATFORM, "--python-version", PYTHON, "--no-python-downloads"),
        *("--generate-hashes", "--no-header", "--no-emit-index-url", "--no-emit-find-links"),
        *(("--upgrade",) if upgrade else ()),
        *("--output-file", str(file), *lock.selection),
    ]
    remedy = "read the resolver's words above; they name what contradicts what in pyproject.toml"
    run(f"locks/{lock.name}.txt", command, seconds=COMPILE_DEADLINE_S, remedy=remedy, environment=uv.environment())
