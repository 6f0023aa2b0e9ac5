"""What in-flight batching gains over one request at a time: `python benchmarks/batching.py`.

The tiny NeVA of `examples/` is built into an engine, whose decoder answers the same prompts in three ways: one after
another by transformers' own `generate`, one after another through the worker's batch, and all at once through it. They
take turns in rounds, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from server import build
from transformers import AutoModelForCausalLM

from multimodal_api.engine import MODEL_DIR
from multimodal_api.worker_protocol import Sampling
from multimodal_modeling.llm import LanguageModel
from multimodal_recipes.recipe import LLM_DIR
from multimodal_server.worker_client import WORKER_ENVIRONMENT
from multimodal_worker.backends.base import GenerateRequest, Token
from multimodal_worker.batch import MAX_ROWS, Batch
from multimodal_worker.device import cpu_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONCURRENCIES: Final = (1, 4, 16)
PROMPT: Final = (40, 100)
"""Shortest and longest prompt, in positions; the tiny NeVA's picture takes 36."""


class Decoder:
    """The engine's language model."""

    def __init__(self, folder: Path) -> None:
        """Load it."""
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.llm = LanguageModel(self.model)

    def run(self, requests: Sequence[GenerateRequest], at_once: int) -> int:
        """Answer all, so many at a time; count the tokens."""
        longest = max(len(request.embeddings) + request.max_new_tokens for request in requests)
        batch = Batch(
            self.llm, self.llm.new_pool(at_once * (longest + 16)), self.model.config.vocab_size, min(at_once, MAX_ROWS)
        )
        waiting = list(reversed(requests))
        tokens = 0
        while waiting or batch:
            while waiting and len(batch) < at_once:
                batch.join(waiting.pop())
            tokens += sum(isinstance(outcome, Token) for _, outcome in batch.step())
        return tokens

    @torch.inference_mode()
    def run_transformers(self, requests: Sequence[GenerateRequest]) -> int:
        """Answer one after another with `generate`; count the tokens."""
        tokens = 0
        for request in requests:
            answer = self.model.generate(
                inputs_embeds=request.embeddings[None],
                attention_mask=torch.ones(1, len(request.embeddings), dtype=torch.long),
                max_new_tokens=request.max_new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            tokens += answer.shape[1]
        return tokens


def prompts(count: int, hidden: int, tokens: int) -> list[GenerateRequest]:
    """Make random prompts of different lengths."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(*PROMPT, (count,), generator=generator).tolist()
    return [
        GenerateRequest(
            embeddings=torch.randn(length, hidden, generator=generator),
            text_ids=(),
            sampling=Sampling(),
            max_new_tokens=tokens,
            stop_token_ids=frozenset(),
        )
        for length in lengths
    ]


def main() -> None:
    """Measure and print the table."""
    if not WORKER_ENVIRONMENT.items() <= os.environ.items():  # read when torch is loaded: begin anew with it
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | WORKER_ENVIRONMENT)  # noqa: S606
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns that each way takes")
    parser.add_argument("--requests", type=int, default=32, help="requests of one turn")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    arguments = parser.parse_args()
    torch.set_num_threads(cpu_threads())
    with tempfile.TemporaryDirectory() as store:
        decoder = Decoder(build(Path(store)) / MODEL_DIR / LLM_DIR)
    requests = prompts(arguments.requests, decoder.llm.hidden_size, arguments.tokens)
    ways: dict[str, Callable[[], int]] = {"transformers, one at a time": lambda: decoder.run_transformers(requests)}
    for at_once in CONCURRENCIES:
        ways[f"batch of {at_once}"] = lambda at_once=at_once: decoder.run(requests, at_once)  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(arguments.rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            rate = way() / (time.perf_counter() - begun)
            if round_number:  # the first warms up
                rates[name].append(rate)
    print(f"tiny NeVA's decoder, float32, prompts of {PROMPT[0]} to {PROMPT[1]}, {arguments.tokens} tokens each")
    print(f"{arguments.rounds} rounds of {arguments.requests} requests, {os.cpu_count()} CPUs, ", end="")
    print(f"load average {os.getloadavg()[0]:.1f}\n")
    print("| way | tokens/s | of a batch of 1 |")
    print("|---|---|---|")
    alone = statistics.median(rates[f"batch of {CONCURRENCIES[0]}"])
    for name, measured in rates.items():
        rate = statistics.median(measured)
        print(f"| {name} | {rate:.0f} | {rate / alone:.2f} |")


if __name__ == "__main__":
    main()
