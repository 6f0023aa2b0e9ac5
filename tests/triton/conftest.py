"""One server of this project with real Triton, on a random tiny engine."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from multimodal_api.families import Family
from multimodal_client import Client
from support import tiny_families
from support.ports import unused_port
from support.tiny_model import make_engine

START_SECONDS = 300.0
"""Of a machine that is busy with a cluster; alone it takes less than ten."""
END_SECONDS = 120.0
FUZZ_FACTOR = int(os.environ.get("MULTIMODAL_FUZZ_FACTOR", "1"))
"""How many times as many examples as usual the fuzzers try."""


@dataclass
class Server:
    """A running `multimodal-server`."""

    folder: Path
    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    metrics: str
    openai: str
    client: Client = field(init=False)
    # Triton's Python backend loads the interpreter's shared library by the loader's path.
    environment: ClassVar = os.environ | {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")}

    def __post_init__(self) -> None:
        self.client = Client(self.http, "tiny", timeout=START_SECONDS)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def last_words(self) -> str:
        return (self.folder / "termination-log").read_text()

    def worker(self) -> int:
        (child,) = (
            int(line.split()[0])
            for line in subprocess.check_output(["ps", "-ww", "-eo", "pid,ppid,args"], text=True).splitlines()[1:]
            if line.split()[1] == str(self.process.pid) and "multimodal_worker" in line
        )
        return child

    def triton(self, words: str = "bin/tritonserver ") -> list[int]:
        """Triton's processes with these words in their command line: itself, or `NAME_0_0` for a model's first."""
        return [
            int(line.split()[0])
            for line in subprocess.check_output(["ps", "-ww", "-eo", "pid,args"], text=True).splitlines()
            if f"multimodal-triton-{self.process.pid}/" in line and words in line
        ]

    def memory(self) -> int:
        """Bytes of resident memory, of all its processes together."""
        total = 0
        for line in subprocess.check_output(["ps", "-ww", "-eo", "rss,pid,ppid,args"], text=True).splitlines()[1:]:
            rss, pid, parent, arguments = line.split(maxsplit=3)
            ours = str(self.process.pid) in {pid, parent} or f"multimodal-triton-{self.process.pid}/" in arguments
            total += int(rss) * 1024 * ours
        return total

    def end(self) -> None:
        """Leave no process behind: what a container's end does in a pod."""
        self.process.kill()
        self.process.wait(END_SECONDS)
        for left in self.triton(words=""):
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        for segment in Path("/dev/shm").glob(f"pytrtion{self.process.pid}-*"):
            segment.unlink(missing_ok=True)
        shutil.rmtree(Path(tempfile.gettempdir()) / f"multimodal-triton-{self.process.pid}", ignore_errors=True)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine(tmp_path_factory.mktemp("store"), max_batch_size=2, max_output_len=200, max_input_len=80)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start_one(engine: Path, *more: str) -> Server:
        folder = tmp_path_factory.mktemp("server")
        (folder / "termination-log").touch()
        http, grpc, metrics, openai = (unused_port() for _ in range(4))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "multimodal_server.main", "--engine", str(engine), "--model-name", "tiny"),
                    *("--http-address", "127.0.0.1", "--http-port", str(http), "--grpc-port", str(grpc)),
                    *("--metrics-port", str(metrics), "--termination-log", str(folder / "termination-log")),
                    *("--openai-port", str(openai)),
                    *("--drain-seconds", str(END_SECONDS), "--grace-seconds", str(END_SECONDS / 2)),
                    *more,
                ],
                stdout=log,
                stderr=log,
                env=Server.environment,
            )
        server = Server(
            folder,
            process,
            f"127.0.0.1:{http}",
            f"grpc://127.0.0.1:{grpc}",
            f"http://127.0.0.1:{metrics}/metrics",
            f"http://127.0.0.1:{openai}",
        )
        servers.append(server)
        return server

    yield start_one
    for server in servers:
        server.end()


@pytest.fixture(scope="session")
def server(start: Callable[[Path], Server], engine: Path) -> Server:
    """A server that tests share; one that ends it starts its own."""
    return ready(start(engine))


@pytest.fixture(scope="session")
def serve(
    start: Callable[[Path], Server], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Iterable[Family]], list[Server]]:
    """Gives servers of committed tiny models, which tests share; those that are asked for together start together."""
    servers: dict[Family, Server] = {}

    def served(families: Iterable[Family]) -> list[Server]:
        wanted = list(families)
        for family in wanted:
            if family not in servers:
                servers[family] = start(tiny_families.build_usual(family, tmp_path_factory.mktemp("store")))
        return [ready(servers[family]) for family in wanted]

    return served


def ready(server: Server) -> Server:
    ends = time.monotonic() + START_SECONDS
    while server.process.poll() is None and time.monotonic() < ends:
        with suppress(Exception):
            server.client.wait_ready(1)
            return server
    pytest.fail(f"the server is not ready (exit code {server.process.poll()}):\n{server.log[-4000:]}")


def inline(pixels: NDArray[np.uint8]) -> str:
    """A picture as a data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def picture(seed: int, height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
