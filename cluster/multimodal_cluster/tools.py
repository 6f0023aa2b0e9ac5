"""kubectl and helm, aimed at the chosen cluster."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from multimodal_cluster.commands import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multimodal_cluster.providers import Provider

SHORT_S: Final = 60.0
REMEDY: Final = "`python3 cluster status` says whether the cluster is well"


class Tools:
    """The two programs that talk to a cluster."""

    def __init__(self, provider: Provider) -> None:
        given = provider.env()
        path = ":".join(part for part in (given.get("PATH"), os.environ.get("PATH")) if part)
        self._environment = {**os.environ, **given, "PATH": path}

    def kubectl(self, *arguments: str, text: str | None = None, seconds: float = SHORT_S, remedy: str = REMEDY) -> str:
        """Run kubectl and return what it printed; raises ClusterError."""
        return run(
            "kubectl",
            ["kubectl", *arguments],
            seconds=seconds,
            remedy=remedy,
            text=text,
            environment=self._environment,
        )

    def helm(self, *arguments: str, seconds: float, remedy: str = REMEDY) -> str:
        """Run helm and return what it printed; raises ClusterError."""
        return run("helm", ["helm", *arguments], seconds=seconds, remedy=remedy, environment=self._environment)

    @contextmanager
    def lines(self, *arguments: str) -> Iterator[Iterator[str]]:
        """Run kubectl and give its lines as they come; it is ended when the block ends."""
        with subprocess.Popen(
            ["kubectl", *arguments], stdout=subprocess.PIPE, text=True, env=self._environment
        ) as process:
            assert process.stdout is not None  # noqa: S101 -- asked for above
            try:
                yield iter(process.stdout)
            finally:
                process.terminate()
