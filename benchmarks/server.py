"""What the served path costs over a direct call of the engine: `python benchmarks/server.py`.

The tiny NeVA of `examples/` is built into an engine and answers in two ways: through the worker's own scheduler,
encoder and backend in this process, with prompt and pixels made beforehand (direct), and through `multimodal-server`
over HTTP (served: Triton, PyTriton, checks, tokenizer, preprocessing, socket). Both take turns in short rounds, so that
a busy machine slows both; every request has a picture of its own, so that nothing comes from a cache.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from multimodal_api.engine import MODEL_DIR, Backend, BuildInputs, Dtype, Limits, SourceIdentity
from multimodal_api.families import Family, LlmType
from multimodal_api.worker_protocol import Done, Generate, MediaInput, MediaSpan, Sampling
from multimodal_client import Client
from multimodal_recipes.images import preprocess
from multimodal_recipes.layout import lay_out
from multimodal_recipes.prompt import Turn, render
from multimodal_server.engine import open_engine
from multimodal_server.triton import free_port
from multimodal_server.worker_client import WORKER_ENVIRONMENT
from multimodal_worker.backends import LOADERS
from multimodal_worker.device import DeviceThread, cpu_threads
from multimodal_worker.encoder import BatchedEncoder, MediaCache
from multimodal_worker.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from multimodal_api.worker_protocol import Message

CHECKPOINT: Final = Path(__file__).parent.parent / "examples/tiny/neva/neva.nemo"
QUESTION: Final = "Describe the picture."
EDGE: Final = 336
MAX_OUTPUT_LEN: Final = 16
CONCURRENCIES: Final = (1, 8)
START_SECONDS: Final = 300.0
END_SECONDS: Final = 60.0


@dataclass
class Direct:
    """The worker's parts, in this process."""

    engine_dir: Path
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def __post_init__(self) -> None:
        """Load."""
        torch.set_num_threads(cpu_threads())
        self._served = open_engine(self.engine_dir)
        self._ends: dict[int, asyncio.Future[None]] = {}
        self._thread = DeviceThread()
        self._next = 0
        self._scheduler = self.loop.run_until_complete(self._load())

    async def _load(self) -> Scheduler:
        inputs = self._served.manifest.inputs
        engine = await self._thread.run(
            LOADERS[inputs.backend],
            self.engine_dir / MODEL_DIR,
            inputs,
            device=torch.device("cpu"),
            thread=self._thread,
        )
        encoder = BatchedEncoder(
            engine.encoder, self._thread, max_batch=inputs.limits.vision_max_batch_size, cache=MediaCache()
        )
        return Scheduler(engine, encoder, self._thread, max_running=inputs.limits.max_batch_size, send=self._receive)

    async def _receive(self, message: Message) -> None:
        if isinstance(message, Done):
            self._ends.pop(message.request_id).set_result(None)

    def prepare(self, frame: NDArray[np.uint8]) -> tuple[Generate, bytearray]:
        """Do what the front does, beforehand."""
        recipe = self._served.recipe
        vision = recipe.seeing()
        prompt = self._served.tokenizer.encode(render(recipe.template, (Turn((lay_out(vision), QUESTION)),)))
        pixels = preprocess(frame[None], vision.preprocessing, at="picture")
        self._next += 1
        request = Generate(
            request_id=self._next,
            token_ids=prompt.ids,
            media=(
                MediaInput(
                    shape=pixels.shape,
                    spans=tuple(MediaSpan(start=span.start, length=span.length) for span in prompt.media),
                ),
            ),
            sampling=Sampling(),
            max_new_tokens=MAX_OUTPUT_LEN,
            stop_token_ids=self._served.stop_token_ids,
        )
        return request, bytearray(pixels.tobytes())

    def measure(self, frames: Sequence[NDArray[np.uint8]], concurrency: int) -> list[float]:
        """Answer all, `concurrency` at a time; seconds of each."""
        waiting = deque(self.prepare(frame) for frame in frames)
        seconds: list[float] = []

        async def one_after_another() -> None:
            while waiting:
                request, pixels = waiting.popleft()
                begun = time.perf_counter()
                end = self._ends[request.request_id] = self.loop.create_future()
                await self._scheduler.submit(request, [pixels])
                await end
                seconds.append(time.perf_counter() - begun)

        async def all_of_them() -> None:
            await asyncio.gather(*(one_after_another() for _ in range(concurrency)))

        self.loop.run_until_complete(all_of_them())
        return seconds


class Served:
    """`multimodal-server` as a process."""

    def __init__(self, engine_dir: Path) -> None:
        """Start it and wait until it is ready."""
        port = free_port()
        arguments = ["--engine", str(engine_dir), "--model-name", "tiny", "--http-address", "127.0.0.1"]
        arguments += ["--http-port", str(port), "--grpc-port", str(free_port()), "--metrics-port", str(free_port())]
        arguments += ["--openai-port", str(free_port())]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "multimodal_server.main", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Triton's Python backend loads the interpreter's shared library by the loader's path.
            env=os.environ | {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")},
        )
        self._client = Client(f"127.0.0.1:{port}", "tiny")
        self._client.wait_ready(START_SECONDS)

    def measure(self, frames: Sequence[NDArray[np.uint8]], concurrency: int) -> list[float]:
        """Answer all, `concurrency` at a time; seconds of each."""

        def one(frame: NDArray[np.uint8]) -> float:
            begun = time.perf_counter()
            self._client.query(QUESTION, frame, max_output_len=MAX_OUTPUT_LEN)
            return time.perf_counter() - begun

        with ThreadPoolExecutor(concurrency) as threads:
            return list(threads.map(one, frames))

    def stop(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(END_SECONDS)


def build(store: Path, checkpoint: Path = CHECKPOINT, *, at_once: int = max(CONCURRENCIES)) -> Path:
    """Build an engine, of the tiny NeVA unless told otherwise, for so many requests at once."""
    inputs = BuildInputs(
        family=Family.NEVA,
        llm_type=LlmType.LLAMA,
        visual_checkpoint=SourceIdentity(kind="pvc", location="benchmark", path=checkpoint.name),
        num_gpus=0,
        dtype=Dtype.FLOAT32,
        backend=Backend.TORCH,
        limits=Limits(
            max_input_len=512,
            max_output_len=64,
            max_batch_size=at_once,
            max_multimodal_len=256,
            vision_max_batch_size=1,
        ),
    )
    command = [
        sys.executable,
        "-m",
        "multimodal_builder.main",
        "build",
        "--inputs",
        inputs.model_dump_json(by_alias=True),
    ]
    command += ["--visual-checkpoint", str(checkpoint), "--store", str(store), "--key", inputs.key()]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return store / inputs.key()


def pictures() -> Iterator[NDArray[np.uint8]]:
    """Pictures without end, no two equal."""
    random = np.random.default_rng(0)
    while True:
        yield random.integers(0, 256, (EDGE, EDGE, 3), dtype=np.uint8)


def main() -> None:
    """Measure and print the table."""
    if not WORKER_ENVIRONMENT.items() <= os.environ.items():  # read when torch is loaded: begin anew with it
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | WORKER_ENVIRONMENT)  # noqa: S606
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="turns that each way takes")
    parser.add_argument("--requests", type=int, default=16, help="requests of one turn")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        engine = build(Path(store))
        direct, served = Direct(engine), Served(engine)
        try:
            run(direct.measure, served.measure, arguments.rounds, arguments.requests)
        finally:
            served.stop()


def run(
    direct: Callable[[Sequence[NDArray[np.uint8]], int], list[float]],
    served: Callable[[Sequence[NDArray[np.uint8]], int], list[float]],
    rounds: int,
    requests: int,
) -> None:
    """Let both take turns, and print the table."""
    source = pictures()

    def frames() -> list[NDArray[np.uint8]]:
        return [next(source) for _ in range(requests)]

    print(f"tiny NeVA, picture {EDGE} by {EDGE}, at most {MAX_OUTPUT_LEN} tokens, {os.cpu_count()} CPUs")
    print(f"{rounds} rounds of {requests} requests each way, taking turns\n")
    print("| concurrency | direct p50 | served p50 | added p50 | ratio | direct p90 | served p90 | load average |")
    print("|---|---|---|---|---|---|---|---|")
    for concurrency in CONCURRENCIES:
        direct(frames(), concurrency)
        served(frames(), concurrency)
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(rounds):
            ours += served(frames(), concurrency)
            theirs += direct(frames(), concurrency)
        a, b = (statistics.median(seconds) * 1000 for seconds in (theirs, ours))
        c, d = (statistics.quantiles(seconds, n=10)[-1] * 1000 for seconds in (theirs, ours))
        print(
            f"| {concurrency} | {a:.1f} ms | {b:.1f} ms | {b - a:.1f} ms | {b / a:.2f} | {c:.1f} ms | {d:.1f} ms "
            f"| {os.getloadavg()[0]:.1f} |"
        )


if __name__ == "__main__":
    main()
