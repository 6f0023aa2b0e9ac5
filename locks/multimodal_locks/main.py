"""The command line: `python3 locks COMMAND`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from multimodal_cluster.errors import ClusterError
from multimodal_cluster.paths import paths_of
from multimodal_cluster.progress import Progress
from multimodal_locks import compiling, environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multimodal_cluster.paths import Paths


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python3 locks", description="Dependencies, pinned and hashed.")
    commands = parser.add_subparsers(dest="command", required=True)
    path = commands.add_parser("path", help="print the folder of an environment")
    venv = commands.add_parser("venv", help="bring an environment up to date")
    for command in (path, venv):
        command.add_argument(
            "environment",
            nargs="?",
            choices=environment.ENVIRONMENTS,
            default=environment.DEVELOPMENT.lock,
            help="its lock (default: %(default)s)",
        )
    compile_ = commands.add_parser("compile", help="write the locks from pyproject.toml; pins that still fit stay")
    compile_.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    commands.add_parser("check", help="fail when a lock does not follow from pyproject.toml")
    given = parser.parse_args(arguments)
    paths = paths_of(os.environ)
    try:
        return _run(given, paths)
    except ClusterError as error:
        print(error.report(), file=sys.stderr)
        return 1


def _run(given: argparse.Namespace, paths: Paths) -> int:
    if given.command == "path":
        print(environment.folder(environment.ENVIRONMENTS[given.environment], paths))
    elif given.command == "venv":
        environment.ensure(environment.ENVIRONMENTS[given.environment], paths, Progress())
    elif given.command == "compile":
        compiling.compile_all(paths, upgrade=given.upgrade)
    else:
        stale = compiling.stale(paths)
        for lock in stale:
            print(f"{lock.file.name} does not follow from pyproject.toml: run `make locks`", file=sys.stderr)
        return 1 if stale else 0
    return 0
