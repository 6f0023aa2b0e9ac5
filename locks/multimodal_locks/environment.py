"""Environments from locks, in the cache: the one for development, and one for each server that a benchmark compares."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from multimodal_cluster.commands import run
from multimodal_cluster.locks import locked
from multimodal_locks import uv

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_cluster.paths import Paths
    from multimodal_cluster.progress import Progress

ROOT: Final = uv.LOCKS.parent
INSTALL_DEADLINE_S: Final = 1800.0
REMEDY: Final = "see whether the package index answers and the disk has 10 GB free, and run again"


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment that holds what a lock says.

    Attributes:
        lock: name of the lock.
        prefix: of the folder's name.
        what: it is, for people.
        develops: whether the project itself is in it, editable.
    """

    lock: str
    prefix: str
    what: str
    develops: bool

    @property
    def file(self) -> Path:
        """The lock."""
        return uv.LOCKS / f"{self.lock}.txt"


DEVELOPMENT: Final = Environment("dev", "venv", "the development environment", develops=True)
SERVING: Final = Environment("serving", "serving", "the environment of `transformers serve`", develops=False)
ENVIRONMENTS: Final = {environment.lock: environment for environment in (DEVELOPMENT, SERVING)}


def folder(environment: Environment, paths: Paths) -> Path:
    """Name an environment's folder: one per Python and, where the project is installed editable, per source tree."""
    source = ROOT if environment.develops else _digest(environment)
    where = hashlib.sha256(f"{source}\0{sys.version}".encode()).hexdigest()[:8]
    return paths.cache / f"{environment.prefix}-{where}"


def ensure(environment: Environment, paths: Paths, progress: Progress) -> None:
    """Make or update an environment, unless it already holds what the lock and pyproject.toml say.

    Raises:
        ClusterError: a package cannot be installed.
    """
    venv = folder(environment, paths)
    stamp = venv / "installed"
    wanted = _digest(environment)
    if _read(stamp) == wanted:
        return
    with locked(paths.cache / f"{venv.name}.lock", seconds=INSTALL_DEADLINE_S, what=environment.what):
        if _read(stamp) == wanted:
            return
        with progress.step(f"install {environment.what} in {venv}"):
            stamp.unlink(missing_ok=True)
            _install(environment, venv, paths)
            stamp.write_text(wanted)


def _install(environment: Environment, venv: Path, paths: Paths) -> None:
    def pip(*arguments: str) -> None:
        command = [program, "pip", *arguments, "--python", str(venv / "bin" / "python")]
        run("venv", command, seconds=INSTALL_DEADLINE_S, remedy=REMEDY, environment=uv.environment())

    program = str(uv.program(paths))
    if not (venv / "bin" / "python").exists():
        make = [program, "venv", "--clear", "--no-python-downloads", "--python", sys.executable, str(venv)]
        run("venv", make, seconds=60, remedy="run with Python 3.11", environment=uv.environment())
    # Tests start many processes: none of them should compile torch again, where Python may not write what it compiled.
    compiled = ("--compile-bytecode",) if environment.develops else ()
    pip("sync", "--require-hashes", *compiled, str(environment.file))
    if environment.develops:
        # hatchling is in the lock: with isolation it would come unpinned.
        pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def _digest(environment: Environment) -> str:
    content = environment.file.read_bytes()
    if environment.develops:
        content += b"\0" + (ROOT / "pyproject.toml").read_bytes()
    return hashlib.sha256(content).hexdigest()


def _read(file: Path) -> str | None:
    return file.read_text() if file.exists() else None
