"""Tests on the real cluster find it by themselves: `make cluster-up` is all they need before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def _cluster_environment() -> None:
    """Take the variables that `python3 cluster env` prints, as a person's shell does."""
    script = f'eval "$({sys.executable} {ROOT / "cluster"} env)" && env -0'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    os.environ.update(pair.split("=", 1) for pair in done.stdout.split("\0") if pair)
