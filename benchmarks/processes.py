"""The processes of `server.py`: clients, the server, and PyTriton alone."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from marks import Marks

from multimodal_api.errors import ProductError
from multimodal_client import Client
from multimodal_server.triton import free_port
from multimodal_server.worker_client import PYTHON_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE: Final = Path(__file__).parent
MODEL: Final = "tiny"
START_SECONDS: Final = 300.0
END_SECONDS: Final = 60.0
POLL_SECONDS: Final = 1.0
TICKS: Final = os.sysconf("SC_CLK_TCK")
KINDS: Final = {"multimodal_worker": "engine", "multimodal_server": "front", "empty_model": "front"}
"""What a process is, by a word of its command line; all others are Triton's."""


@dataclass(frozen=True)
class Turn:
    """What one way did in one turn."""

    begun: float
    moments: list[tuple[float, float]]
    """When each request was asked, and answered."""
    cpu: dict[str, float]
    """CPU seconds, by process."""

    @cached_property
    def seconds(self) -> list[float]:
        """Of each request."""
        return [answered - asked for asked, answered in self.moments]

    @property
    def p50(self) -> float:
        """Seconds at the median."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.moments) / (max(answered for _, answered in self.moments) - self.begun)


class Process:
    """One of ours, on some CPUs."""

    def __init__(self, arguments: Sequence[str], cpus: set[int], environment: Mapping[str, str]) -> None:
        """Start it."""
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- it lives as long as the process
        self.own = subprocess.Popen(
            [*pinned(cpus), sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | environment,
        )

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.own.send_signal(signal.SIGTERM)
        self.own.communicate(timeout=END_SECONDS)


class Server(Process):
    """A server whose model is ready when this is made."""

    def __init__(
        self, program: Sequence[str], arguments: Sequence[str], cpus: set[int], environment: Mapping[str, str]
    ) -> None:
        """Start it and wait until it is ready."""
        self.ports = {name: free_port() for name in ("http", "grpc", "metrics", "openai")}
        self.model = MODEL
        ports = [part for name, port in self.ports.items() for part in (f"--{name}-port", str(port))]
        # Triton's Python backend loads the interpreter's shared library by the loader's path.
        environment = {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR"), **environment}
        super().__init__([*program, "--model-name", MODEL, *ports, *arguments], cpus, environment)
        self._wait()

    def _wait(self) -> None:
        client, ends = Client(f"127.0.0.1:{self.ports['http']}", MODEL), time.monotonic() + START_SECONDS
        while self.own.poll() is None:
            try:
                client.wait_ready(POLL_SECONDS)
            except ProductError:
                if time.monotonic() > ends:
                    raise
            else:
                return
        self.errors.seek(0)
        raise RuntimeError(f"the server ended: {self.errors.read()[-2000:]}")

    def cpu(self) -> Counter[str]:
        """Count the CPU seconds of it and its children, by what they are."""
        parents, seconds = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                    words = (entry / "cmdline").read_text()
                except OSError:
                    continue  # it has ended
                kind = next((kind for word, kind in KINDS.items() if word in words), "Triton")
                parents[int(entry.name)] = int(stat[1])
                seconds[int(entry.name)] = (kind, (int(stat[11]) + int(stat[12])) / TICKS)
        found: Counter[str] = Counter()
        for process, (kind, own) in seconds.items():
            ancestor = process
            while ancestor in parents and ancestor != self.own.pid:
                ancestor = parents[ancestor]
            if ancestor == self.own.pid:
                found[kind] += own
        return found


class Served(Server):
    """`multimodal-server`."""

    def __init__(self, engine: Path, cpus: set[int], *, engine_cpus: set[int], work: Path, steps: bool) -> None:
        """Start it.

        Args:
            engine: its folder.
            cpus: of all but the worker.
            engine_cpus: of the worker.
            work: an empty folder.
            steps: whether its processes note what they do.
        """
        self.marks = Marks(work / "marks")
        program = ["-m", "multimodal_server.main"]
        worker = [*pinned(engine_cpus), sys.executable]
        environment = {}
        if steps:
            program = [str(HERE / "marks.py"), *program]
            worker += [str(HERE / "marks.py")]
            environment = self.marks.environment
        python = work / "python"
        python.write_text(f'#!/bin/sh\nexec {" ".join(worker)} "$@"\n')
        python.chmod(0o755)
        environment |= {PYTHON_VARIABLE: str(python)}
        super().__init__(program, ["--engine", str(engine), "--http-address", "127.0.0.1"], cpus, environment)


class Empty(Server):
    """PyTriton, and a model that only sleeps."""

    def __init__(self, cpus: set[int], *, concurrency: int, seconds: float) -> None:
        """Start it."""
        arguments = ["--concurrency", str(concurrency), "--seconds", str(seconds)]
        super().__init__([str(HERE / "empty_model.py")], arguments, cpus, {})


class Clients(Process):
    """`asking.py`."""

    def __init__(self, cpus: set[int]) -> None:
        """Start it."""
        super().__init__([str(HERE / "asking.py")], cpus, {})

    def take(self, server: Server, turn: dict[str, Any]) -> Turn:
        """Take a turn at a server."""
        before = server.cpu()
        assert self.own.stdin is not None
        assert self.own.stdout is not None
        self.own.stdin.write(json.dumps(turn) + "\n")
        self.own.stdin.flush()
        found = json.loads(self.own.stdout.readline())
        spent = server.cpu()
        spent.subtract(before)
        moments = [(asked, answered) for asked, answered in found["moments"]]
        return Turn(found["begun"], moments, {"client": found["cpu"], **spent})


def pinned(cpus: set[int]) -> list[str]:
    """Begin a command that runs on these CPUs."""
    return ["taskset", "--cpu-list", ",".join(map(str, sorted(cpus)))]
