"""The development environment: everything of `dev.txt`, and the project itself, editable."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Final

from multimodal_cluster.commands import run
from multimodal_cluster.locks import locked
from multimodal_locks import uv

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress

ROOT: Final = uv.LOCKS.parent
LOCK: Final = uv.LOCKS / "dev.txt"
INSTALL_DEADLINE_S: Final = 1800.0
REMEDY: Final = "see whether the package index answers and the disk has 10 GB free, and run again"


def folder(paths: Paths) -> Path:
    """Name the environment's folder: one per source tree and Python, since the project is installed editable."""
    where = hashlib.sha256(f"{ROOT}\0{sys.version}".encode()).hexdigest()[:8]
    return paths.cache / f"venv-{where}"


def ensure(paths: Paths, progress: Progress) -> None:
    """Make or update the environment, unless it already holds what the lock and pyproject.toml say.

    Raises:
        ClusterError: a package cannot be installed.
    """
    venv = folder(paths)
    stamp = venv / "installed"
    wanted = _digest()
    if _read(stamp) == wanted:
        return
    with locked(paths.cache / f"{venv.name}.lock", seconds=INSTALL_DEADLINE_S, what="the development environment"):
        if _read(stamp) == wanted:
            return
        with progress.step(f"install the development environment in {venv}"):
            stamp.unlink(missing_ok=True)
            _install(venv, paths)
            stamp.write_text(wanted)


def _install(venv: Path, paths: Paths) -> None:
    def pip(*arguments: str) -> None:
        command = [program, "pip", *arguments, "--python", str(venv / "bin" / "python")]
        run("venv", command, seconds=INSTALL_DEADLINE_S, remedy=REMEDY, environment=uv.environment())

    program = str(uv.program(paths))
    if not (venv / "bin" / "python").exists():
        make = [program, "venv", "--clear", "--no-python-downloads", "--python", sys.executable, str(venv)]
        run("venv", make, seconds=60, remedy="run with Python 3.11", environment=uv.environment())
    # Tests start many processes: none of them should compile torch again, where Python may not write what it compiled.
    pip("sync", "--require-hashes", "--compile-bytecode", str(LOCK))
    # hatchling is in the lock: with isolation it would come unpinned.
    pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def _digest() -> str:
    content = LOCK.read_bytes() + b"\0" + (ROOT / "pyproject.toml").read_bytes()
    return hashlib.sha256(content).hexdigest()


def _read(file: Path) -> str | None:
    return file.read_text() if file.exists() else None
