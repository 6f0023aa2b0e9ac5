"""Short commands with a deadline, whose failure is an error with their words in it."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING

from multimodal_cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def run(
    part: str,
    command: Sequence[str],
    *,
    seconds: float,
    remedy: str,
    text: str | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a command to its end and return what it printed.

    Args:
        part: named in the error.
        command: program and arguments.
        seconds: deadline.
        remedy: told to the reader when it fails.
        text: given on standard input.
        environment: replaces the environment.
        folder: where it runs.

    Raises:
        ClusterError: it failed, is missing, or took too long.
    """
    shown = shlex.join(command)
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=environment,
            cwd=folder,
        )
    except FileNotFoundError as error:
        raise ClusterError(part, f"{command[0]} is not installed", f"install {command[0]} and run again") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(part, f"`{shown}` was not done after {seconds:g}s", remedy) from error
    if done.returncode != 0:
        raise ClusterError(part, f"`{shown}` ended with {done.returncode}: {done.stderr.strip()}", remedy)
    return done.stdout


def quietly(command: Sequence[str], *, seconds: float = 30) -> bool:
    """Run a command whose failure means only that there was nothing to do; tell whether it succeeded."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
