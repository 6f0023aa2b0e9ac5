"""Our server beside `transformers serve`, both asked over HTTP: `python benchmarks/transformers_serve.py`.

One model, a LLaVA with random weights at the sizes of the tiny NeVA, is written as transformers keeps it. Our engine is
built from that folder, and `transformers serve`, of the version that we lock, serves the folder itself. Its continuous
batching takes language models alone: for that the same language model lies in a folder of its own, and is asked the
same texts. All answer the same requests on their OpenAI ports, in turns, so that a busy machine slows all of them.

The end of an answer is never the best token, so that every answer has the length that is asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import numpy as np
import torch
from PIL import Image
from server import build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from multimodal_server.triton import free_port
from multimodal_server.worker_client import WORKER_ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT: Final = Path(__file__).resolve().parent.parent
CLIENTS: Final = 16
EDGE, PATCH, TOWER_WIDTH, HIDDEN = 48, 8, 64, 96
MODEL: Final = "tiny"
START_SECONDS: Final = 300.0
END_SECONDS: Final = 60.0
NAMED: Final = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
IMAGE: Final = "<image>"
CONVERSATION: Final = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ ' ' }}{% else %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA 1.5's."""


def write_models(llava: Path, llama: Path) -> None:
    """Write the model, and its language model by itself."""
    tokenizer = make_tokenizer()
    ends: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.05,
        **ends,
    )
    tower = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=3 * TOWER_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=EDGE,
        patch_size=PATCH,
    )
    torch.manual_seed(0)
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    whole = LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=tower, image_token_index=image, vision_feature_layer=-2)
    )
    whole.lm_head.weight.data[[tokenizer.eos_token_id, image]] = 0  # others score above 0
    alone = LlamaForCausalLM(text)
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    alone.lm_head.load_state_dict(whole.lm_head.state_dict())
    square = {"height": EDGE, "width": EDGE}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": EDGE}, crop_size=square)
    processor = LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CONVERSATION,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )
    # A processor leaves its name in the tokenizer as it is saved.
    for folder, model, reader in ((llama, alone, tokenizer), (llava, whole, processor)):
        model.generation_config.update(**ends)
        model.save_pretrained(folder)
        reader.save_pretrained(folder)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a small one on its own conversation."""
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = [*dict.fromkeys(NAMED.values()), IMAGE]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, initial_alphabet=alphabet)
    fast.train_from_iterator([CONVERSATION, __doc__ or ""], trainer)
    bos = NAMED["bos_token"]
    fast.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [(bos, fast.token_to_id(bos))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, **NAMED, extra_special_tokens={"image_token": IMAGE})
    tokenizer.chat_template = CONVERSATION
    return tokenizer


@dataclass(frozen=True, slots=True)
class Server:
    """A process that answers on an OpenAI port."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    model: str
    """What it calls the model."""

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(END_SECONDS)


def start(name: str, command: Sequence[str], model: str, port: int) -> Server:
    """Start a server; it loads while the next one starts."""
    # Triton's Python backend loads the interpreter's shared library by the loader's path.
    environment = os.environ | WORKER_ENVIRONMENT | {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")}
    silent = subprocess.DEVNULL
    return Server(name, subprocess.Popen(command, stdout=silent, stderr=silent, env=environment), port, model)


def start_ours(engine: Path) -> Server:
    """Start `multimodal-server`."""
    port = free_port()
    command = [sys.executable, "-m", "multimodal_server.main", "--engine", str(engine), "--model-name", MODEL]
    command += ["--http-address", "127.0.0.1", "--openai-port", str(port)]
    for flag in ("--http-port", "--grpc-port", "--metrics-port"):
        command += [flag, str(free_port())]
    return start("ours", command, MODEL, port)


def start_theirs(name: str, folder: Path, *flags: str) -> Server:
    """Start `transformers serve` out of its own environment."""
    port = free_port()
    command = [str(environment() / "bin/transformers"), "serve", str(folder), "--dtype", "float32", "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port), *flags]
    return start(name, command, str(folder), port)


def environment() -> Path:
    """Install what `transformers serve` needs, unless it is there, and say where."""
    for_it = [sys.executable, str(ROOT / "locks")]
    subprocess.run([*for_it, "venv", "serving"], check=True, stdout=sys.stderr)
    return Path(subprocess.run([*for_it, "path", "serving"], check=True, capture_output=True, text=True).stdout.strip())


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of one kind."""

    name: str
    picture: bool
    stream: bool

    def body(self, number: int, tokens: int) -> dict[str, Any]:
        """Make a request; no two of one kind are equal, nor are their lengths."""
        words = f"Tell me about number {number}" + " and another" * (number % 8) + "."
        content: list[dict[str, Any]] = [{"type": "text", "text": words}]
        if self.picture:
            content.insert(0, {"type": "image_url", "image_url": {"url": picture(number)}})
        return {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": self.stream,
        }


KINDS: Final = (
    Kind("text", picture=False, stream=False),
    Kind("text, streamed", picture=False, stream=True),
    Kind("picture and text", picture=True, stream=False),
)


def picture(number: int) -> str:
    """Draw a small picture of noise, as a data URI."""
    noise = np.random.default_rng(number).integers(0, 256, (EDGE, EDGE, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


async def ready(session: aiohttp.ClientSession, server: Server) -> None:
    """Wait until a server has loaded its model."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert server.process.poll() is None, f"{server.name} has ended"
        try:
            async with session.get(f"http://127.0.0.1:{server.port}/health") as response:
                if response.ok:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.5)
    raise TimeoutError(server.name)


async def measure(session: aiohttp.ClientSession, server: Server, bodies: Sequence[dict[str, Any]]) -> float:
    """Ask everything, from `CLIENTS` clients at once: tokens per second."""
    waiting = iter(bodies)

    async def client() -> None:
        for body in waiting:
            asked = body | {"model": server.model}
            async with session.post(f"http://127.0.0.1:{server.port}/v1/chat/completions", json=asked) as response:
                told = await response.text()
                assert response.ok, f"{server.name}: {told}"
            if not body["stream"]:
                given = (await response.json())["usage"]["completion_tokens"]
                assert given == body["max_tokens"], f"{server.name} gave {given} tokens"
            else:
                assert '"finish_reason":"length"' in told.replace(" ", ""), f"{server.name}: {told[-500:]}"

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return sum(body["max_tokens"] for body in bodies) / (time.perf_counter() - begun)


async def compare(servers: Sequence[tuple[Server, bool]], *, rounds: int, requests: int, tokens: int) -> None:
    """Let all take turns, and print the table.

    Args:
        servers: each, and whether it takes pictures.
        rounds: turns of each.
        requests: of a turn.
        tokens: of an answer.
    """
    numbers = count()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
        for server, _ in servers:
            await ready(session, server)
        rates: dict[Kind, dict[str, list[float]]] = {kind: {} for kind in KINDS}
        for round_number, kind in ((number, kind) for number in range(rounds + 1) for kind in KINDS):
            bodies = [kind.body(next(numbers), tokens) for _ in range(requests)]
            for server, takes_pictures in servers:
                if takes_pictures or not kind.picture:
                    rate = await measure(session, server, bodies)
                    if round_number:  # the first warms up
                        rates[kind].setdefault(server.name, []).append(rate)
    print(f"LLaVA of the tiny NeVA's sizes, float32, {CLIENTS} clients at once, {tokens} tokens each")
    print(f"{rounds} rounds of {requests} requests, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}\n")
    print("| requests | server | tokens/s | ours to it |")
    print("|---|---|---|---|")
    for row in table(rates):
        print(row)


def table(rates: dict[Kind, dict[str, list[float]]]) -> Iterator[str]:
    """Give the rows: medians of the rates, and of the ratios of each round."""
    for kind, measured in rates.items():
        ours, *_ = measured.values()
        for name, theirs in measured.items():
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            yield f"| {kind.name} | {name} | {statistics.median(theirs):.0f} | {ratio:.2f} |"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns that each server takes with each kind of requests")
    parser.add_argument("--requests", type=int, default=32, help="requests of one turn")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        llava, llama = Path(scratch) / "llava", Path(scratch) / "llama"
        write_models(llava, llama)
        servers: list[tuple[Server, bool]] = []
        try:
            servers.append((start_ours(build(Path(scratch) / "store", llava, at_once=CLIENTS)), True))
            servers.append((start_theirs("transformers serve", llava), True))
            batching = ("--continuous-batching", "--cb-max-memory-percent", "0.05")
            servers.append((start_theirs("transformers serve --continuous-batching", llama, *batching), False))
            asyncio.run(compare(servers, rounds=arguments.rounds, requests=arguments.requests, tokens=arguments.tokens))
        finally:
            for server, _ in servers:
                server.stop()


if __name__ == "__main__":
    main()
