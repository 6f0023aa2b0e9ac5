"""The README's first command, on a cluster that knows nothing of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.platform import attempt

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_the_demo_works_where_it_never_ran() -> None:
    for namespace in ("multimodal-demo", "multimodal-system"):
        attempt("delete", "namespace", namespace, "--ignore-not-found", "--timeout=180s", seconds=190)
    command = [sys.executable, ROOT / "demo"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "answers are right" in done.stdout
    assert "<img" in (ROOT / "out" / "demo.html").read_text()
