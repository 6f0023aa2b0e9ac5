"""NeMo's own clients, unmodified: packages of the index, by version and hash, in a folder of the cache.

Nothing of them is in this tree. None of their packages holds NeMo's query script.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from multimodal_cluster.commands import run
from multimodal_cluster.locks import locked
from multimodal_cluster.paths import paths_of
from multimodal_locks import uv

NEMO: Final = "nemo.deploy.multimodal"
EXPORT_DEPLOY: Final = "nemo_deploy.multimodal"
"""NeMo's successor for deployment; it knows no salm."""

REQUIREMENTS: Final = Path(__file__).with_name("nemo_client.txt")
PROGRAM: Final = Path(__file__).with_name("ask_with_nemo.py")
INSTALL_SECONDS: Final = 300.0
ASK_SECONDS: Final = 300.0


def ask(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask in one process of theirs, one question after the other, as `ask_with_nemo.py` says."""
    done = subprocess.run(
        # Without the program's own folder in its path: a module beside it is called as one of Python's.
        [sys.executable, "-P", str(PROGRAM)],
        input="\n".join(map(json.dumps, lines)),
        env=os.environ | {"PYTHONPATH": str(_folder())},
        stdout=subprocess.PIPE,
        timeout=ASK_SECONDS,
        check=True,
        text=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@cache
def _folder() -> Path:
    """Install them, unless they are there."""
    paths = paths_of(os.environ)
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:8]
    folder = paths.cache / f"nemo-client-{digest}"
    with locked(paths.cache / f"{folder.name}.lock", seconds=INSTALL_SECONDS, what="NeMo's clients"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            command = [
                *(str(uv.program(paths)), "pip", "install", "--no-deps", "--require-hashes"),
                *("--python", sys.executable, "--target", str(partial), "--requirements", str(REQUIREMENTS)),
            ]
            remedy = "see whether the package index answers"
            run("nemo-client", command, seconds=INSTALL_SECONDS, remedy=remedy, environment=uv.environment())
            partial.rename(folder)
    return folder
