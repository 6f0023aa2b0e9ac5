"""uv: pinned by its own lock, installed by pip, and told what pip knows of this machine's package index."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from multimodal_cluster.commands import run
from multimodal_cluster.locks import locked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_cluster.paths import Paths

LOCKS: Final = Path(__file__).resolve().parent.parent
LOCK: Final = LOCKS / "uv.txt"
INSTALL_DEADLINE_S: Final = 300.0
# pip's option → uv's variable
SETTINGS: Final = {
    "cert": "SSL_CERT_FILE",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_DEFAULT_INDEX",
}
# pip is the machine's: virtual environments made by uv have none.
PIP: Final = (
    str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"),
    "-m",
    "pip",
)
REMEDY: Final = "see whether the package index answers `pip download uv`"


def version() -> str:
    """Read the pinned version."""
    pinned = re.match(r"uv==(\S+)", LOCK.read_text())
    assert pinned is not None  # noqa: S101 -- the lock is ours, and a test reads it
    return pinned.group(1)


def program(paths: Paths) -> Path:
    """Return uv's program, installing it when it is not in the cache.

    Raises:
        ClusterError: pip cannot install it.
    """
    folder = paths.cache / "bin" / f"uv-{version()}"
    found = folder / "uv"
    if found.exists():
        return found
    with locked(paths.cache / "uv.lock", seconds=INSTALL_DEADLINE_S, what="the installation of uv"):
        if not found.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                # --target needs no virtual environment, which Debian's python3 alone cannot make.
                options = ("--quiet", "--no-deps", "--require-hashes")
                command = [*PIP, "install", *options, "--target", scratch, "--requirement", str(LOCK)]
                run("uv", command, seconds=INSTALL_DEADLINE_S, remedy=REMEDY)
                shutil.copy2(Path(scratch) / "bin" / "uv", f"{found}.partial")
                Path(f"{found}.partial").rename(found)
    return found


@cache
def settings() -> Mapping[str, str]:
    """Translate this machine's configuration of pip into uv's variables."""
    listed = run("pip", [*PIP, "config", "list"], seconds=60, remedy="install pip")
    return translate(listed)


def translate(listed: str) -> Mapping[str, str]:
    """Translate the output of `pip config list`; of a setting that is given twice the later one counts.

    pip lists its files in the order in which they override each other, but its environment first: `:env:` wins here.
    """
    found: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        variable = SETTINGS.get(name.rpartition(".")[2])
        if variable is not None:
            found[variable] = " ".join(str(ast.literal_eval(value)).split())
    return found


def environment() -> dict[str, str]:
    """Return the environment for uv: this process's, over what pip knows."""
    return {**settings(), **os.environ, "UV_NO_PROGRESS": "1"}


def settings_file(environ: Mapping[str, str]) -> str:
    """Render an environment's package indexes as uv's configuration file; its folders exist on this machine only."""
    indexes = [(url, "false") for url in environ.get("UV_INDEX", "").split()]
    indexes += [(url, "true") for url in environ.get("UV_DEFAULT_INDEX", "").split()]
    # A URL in quotes is JSON and TOML alike.
    return "".join(f"[[index]]\nurl = {json.dumps(url)}\ndefault = {default}\n" for url, default in indexes)
