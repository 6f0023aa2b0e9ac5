"""What the ports cost over a direct call of the engine: `python benchmarks/server.py`.

The tiny NeVA of `examples/` is built into an engine and answers in several ways:

- direct: through the worker's own scheduler, encoder and backend in this process, with token ids and pixels made
  before the turn begins. What is added to it is all that a request costs beside the engine.
- direct, from the picture: the same, but token ids and pixels are made of the question and of the picture's RGB during
  the turn: no caller of an engine comes round that.
- direct, from the JPEG and from the PNG: the same, but for a picture's file, which is decoded first.
- through `multimodal-server` over each of its ports: Triton's take RGB, OpenAI's a file. What is added to the direct
  call from what a port is sent is what the port itself costs.
- through Triton to a model that only sleeps, as long as an answer takes: what no server behind PyTriton can go below.
  (Asked without a pause it takes a third less: caches are warm then, and CPUs awake.)

All take turns in rounds, so that a busy machine slows all of them, with the same pictures in a round but for a corner:
answers are as long, and nothing comes from a cache. Clients run in a process of their own, and make what they send
before a turn begins.

On a machine of few CPUs the engine loses to clients, Triton and front what they compute, however little they wait for
each other. `--apart` gives the engine, here and in the server, CPUs of its own and everything else the other ones: as
where an engine computes on a GPU. `--gpu` lets it do that. `--steps` says where the time of one request goes instead.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from asking import EDGE, Pictures, file_of
from processes import Clients, Empty, Served, Server, Turn

from multimodal_api.engine import MODEL_DIR, Backend, BuildInputs, Dtype, Limits, SourceIdentity
from multimodal_api.families import Family, LlmType
from multimodal_api.worker_protocol import Done, Generate, MediaInput, MediaSpan, Sampling
from multimodal_recipes.images import decode, preprocess
from multimodal_recipes.layout import lay_out
from multimodal_recipes.prompt import Turn as Said
from multimodal_recipes.prompt import render
from multimodal_server.engine import open_engine
from multimodal_server.worker_client import WORKER_ENVIRONMENT
from multimodal_worker.backends import LOADERS
from multimodal_worker.device import DeviceChoice, DeviceThread, choose, cpu_threads
from multimodal_worker.encoder import BatchedEncoder, MediaCache
from multimodal_worker.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from multimodal_api.worker_protocol import Message

    Way = Callable[[Pictures, int], Turn]
    """Takes a turn, with so many requests at once."""

CHECKPOINT: Final = Path(__file__).parent.parent / "examples/tiny/neva/neva.nemo"
QUESTION: Final = "Describe the picture."
TOKENS: Final = 16
CONCURRENCIES: Final = {1: 16, 32: 128}
"""With the requests of a turn."""
SLEEP_SECONDS: Final = 0.02
DIRECT: Final = "direct"
FROM_PICTURE: Final = "direct, from the picture"
FROM_JPEG: Final = "direct, from the JPEG"
FROM_PNG: Final = "direct, from the PNG"
SENT: Final = {FROM_JPEG: FROM_JPEG, FROM_PNG: FROM_PNG, "OpenAI, JPEG": FROM_JPEG, "OpenAI, PNG": FROM_PNG}
"""The direct call from what a way is sent; from the picture, unless named here."""


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
            device=choose(DeviceChoice.AUTO, num_gpus=inputs.num_gpus),
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
        prompt = self._served.tokenizer.encode(render(recipe.template, (Said((lay_out(vision), QUESTION)),)))
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
            max_new_tokens=TOKENS,
            stop_token_ids=self._served.stop_token_ids,
            stream=False,
        )
        return request, bytearray(pixels.tobytes())

    def ways(self) -> dict[str, Way]:
        """Name the ways to call it."""
        return {
            DIRECT: self.take,
            FROM_PICTURE: self.take_from_pictures,
            FROM_JPEG: partial(self.take_from_files, "JPEG"),
            FROM_PNG: partial(self.take_from_files, "PNG"),
        }

    def take(self, pictures: Pictures, concurrency: int) -> Turn:
        """Take a turn, with requests made beforehand."""
        return self._take(iter([self.prepare(frame) for frame in pictures.make()]), concurrency)

    def take_from_pictures(self, pictures: Pictures, concurrency: int) -> Turn:
        """Take a turn, and make its requests in it."""
        return self._take(map(self.prepare, list(pictures.make())), concurrency)

    def take_from_files(self, kind: str, pictures: Pictures, concurrency: int) -> Turn:
        """Take a turn, and make its requests of files in it."""
        files = [file_of(frame, kind) for frame in pictures.make()]
        return self._take((self.prepare(decode(file, at="picture")) for file in files), concurrency)

    def _take(self, requests: Iterator[tuple[Generate, bytearray]], concurrency: int) -> Turn:
        moments: list[tuple[float, float]] = []

        async def one_after_another() -> None:
            while True:
                asked = time.perf_counter()
                try:
                    request, pixels = next(requests)
                except StopIteration:
                    return
                end = self._ends[request.request_id] = self.loop.create_future()
                await self._scheduler.submit(request, [pixels])
                await end
                moments.append((asked, time.perf_counter()))

        async def all_of_them() -> None:
            await asyncio.gather(*(one_after_another() for _ in range(concurrency)))

        cpu, begun = time.process_time(), time.perf_counter()
        self.loop.run_until_complete(all_of_them())
        return Turn(begun, moments, {"engine": time.process_time() - cpu})


def build(store: Path, checkpoint: Path = CHECKPOINT, *, at_once: int = max(CONCURRENCIES), num_gpus: int = 0) -> Path:
    """Build an engine, of the tiny NeVA unless told otherwise, for so many requests at once."""
    inputs = BuildInputs(
        family=Family.NEVA,
        llm_type=LlmType.LLAMA,
        visual_checkpoint=SourceIdentity(kind="pvc", location="benchmark", path=checkpoint.name),
        num_gpus=num_gpus,
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


def ports(server: Server, clients: Clients) -> dict[str, Way]:
    """Name the ways that lead through a server's ports."""

    def way(kind: str, port: str, **more: str) -> Way:
        turn = {"way": kind, "port": server.ports[port], "model": server.model, "question": QUESTION, "tokens": TOKENS}
        return lambda pictures, concurrency: clients.take(
            server, turn | more | {"pictures": pictures, "concurrency": concurrency}
        )

    return {
        "Triton HTTP": way("http", "http"),
        "Triton gRPC": way("grpc", "grpc"),
        "OpenAI, JPEG": way("openai", "openai", format="JPEG"),
        "OpenAI, PNG": way("openai", "openai", format="PNG"),
    }


def main() -> None:
    """Measure and print the tables."""
    if not WORKER_ENVIRONMENT.items() <= os.environ.items():  # read when torch is loaded: begin anew with it
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | WORKER_ENVIRONMENT)  # noqa: S606
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns that each way takes")
    parser.add_argument(
        "--apart", type=int, nargs="?", const=1, default=0, metavar="CPUS", help="CPUs that the engine has for itself"
    )
    parser.add_argument("--gpu", action="store_true", help="the engine computes on a GPU")
    parser.add_argument("--steps", action="store_true", help="say where the time of one request goes")
    arguments = parser.parse_args()
    everything = os.sched_getaffinity(0)
    of_engine = set(sorted(everything)[: arguments.apart]) or everything
    others = everything - of_engine or everything
    os.sched_setaffinity(0, of_engine)
    with tempfile.TemporaryDirectory() as store, Clients(others) as clients:
        engine = build(Path(store), num_gpus=int(arguments.gpu))
        direct = Direct(engine)
        print(f"tiny NeVA, picture {EDGE} by {EDGE}, at most {TOKENS} tokens; {len(everything)} CPUs", end="")
        print(", a GPU for the engine" * arguments.gpu, end="")
        print(f", of which the engine has {arguments.apart} for itself" if arguments.apart else ", shared by all")
        with Served(engine, others, engine_cpus=of_engine, work=Path(store), steps=arguments.steps) as served:
            ways = ports(served, clients)
            if arguments.steps:
                steps(ways, served, arguments.rounds)
                return
            for concurrency, requests in CONCURRENCIES.items():
                table(direct.ways() | ways, arguments.rounds, requests, concurrency)
    with Clients(others) as clients, Empty(others, concurrency=1, seconds=SLEEP_SECONDS) as empty:
        sleeping = ports(empty, clients)
        for name in ("Triton HTTP", "Triton gRPC"):
            turns = [sleeping[name](Pictures(number, 0, CONCURRENCIES[1]), 1) for number in range(arguments.rounds + 1)]
            added = statistics.median(turn.p50 for turn in turns[1:]) - SLEEP_SECONDS
            print(f"\n{name} adds {added * 1000:.1f} ms to a function that sleeps {SLEEP_SECONDS * 1000:.0f} ms")


def table(ways: dict[str, Way], rounds: int, requests: int, concurrency: int) -> None:
    """Let all ways take turns, and print what each took."""
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for place, (name, way) in enumerate(ways.items()):
            turn = way(Pictures(1000 * concurrency + number, place, requests), concurrency)
            if number:  # the first warms up
                turns[name].append(turn)
    print(f"\nconcurrency {concurrency}: {rounds} rounds of {requests} requests each way, taking turns; ", end="")
    print(f"load average {os.getloadavg()[0]:.1f}\n")
    print("| way | p50 | p90 | over direct | over from picture | over from what is sent | requests/s ", end="")
    print("| of direct | of from picture | of from what is sent | CPU time |")
    print("|---" * 11 + "|")
    for name, own in turns.items():
        seconds = [each for turn in own for each in turn.seconds]
        references = (DIRECT, FROM_PICTURE, SENT.get(name, FROM_PICTURE))
        added, share = zip(*(_against(own, turns[way]) for way in references), strict=True)
        print(
            f"| {name} | {statistics.median(seconds) * 1000:.1f} ms "
            f"| {statistics.quantiles(seconds, n=10)[-1] * 1000:.1f} ms "
            f"| {' | '.join(f'{each * 1000:+.1f} ms' for each in added)} "
            f"| {statistics.median(turn.rate for turn in own):.1f} "
            f"| {' | '.join(f'{each * 100:.0f} %' for each in share)} | {_cpu(own, requests)} |"
        )


def _against(own: Sequence[Turn], others: Sequence[Turn]) -> tuple[float, float]:
    """Give the seconds that one way adds to another at the median, and its share of the other's throughput."""
    pairs = list(zip(own, others, strict=True))
    return (
        statistics.median(turn.p50 - other.p50 for turn, other in pairs),
        statistics.median(turn.rate / other.rate for turn, other in pairs),
    )


def _cpu(turns: Sequence[Turn], requests: int) -> str:
    """Say what CPU time each process took of a request."""
    parts = {name: statistics.median(turn.cpu[name] for turn in turns) * 1000 / requests for name in turns[0].cpu}
    return ", ".join(f"{name} {milliseconds:.1f} ms" for name, milliseconds in parts.items())


def steps(ways: dict[str, Way], served: Served, rounds: int) -> None:
    """Print where the time of one request goes, for each way."""
    requests = CONCURRENCIES[1]
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for place, (name, way) in enumerate(ways.items()):
            turn = way(Pictures(number, place, requests), 1)
            if number:
                turns[name].append(turn)
    for name, own in turns.items():
        print(f"\n{name}: median of {rounds * requests} requests, one at a time\n")
        print("| up to | ms |")
        print("|---|---|")
        moments = [moment for turn in own for moment in turn.moments]
        for step, milliseconds in served.marks.between(moments):
            print(f"| {step} | {milliseconds:.2f} |")


if __name__ == "__main__":
    main()
