"""The embedded backend: short and plain, for the CPU and one small GPU. Sequences take turns, one token each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from multimodal_modeling.generate import generate
from multimodal_modeling.model import MultimodalModel
from multimodal_modeling.sampling import SamplingParameters
from multimodal_worker.backends.base import BackendStats, Engine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from multimodal_api.engine import BuildInputs
    from multimodal_modeling.llm import LanguageModel
    from multimodal_worker.backends.base import GenerateRequest
    from multimodal_worker.device import DeviceThread


def load(model_dir: Path, inputs: BuildInputs, *, device: torch.device, thread: DeviceThread) -> Engine:
    """Load the canonical model as it is; `dtype` is applied to the weights in memory."""
    model = MultimodalModel.load(model_dir, dtype=getattr(torch, inputs.dtype.value), device=device)
    return Engine(
        encoder=model.media,
        embedder=model,
        backend=TorchBackend(model.llm, vocab_size=model.recipe.vocab_size, thread=thread),
        hidden_size=model.llm.hidden_size,
    )


class TorchBackend:
    """A decoder of `multimodal_modeling`."""

    def __init__(self, llm: LanguageModel, *, vocab_size: int, thread: DeviceThread) -> None:
        """Take a loaded decoder.

        Args:
            llm: the decoder.
            vocab_size: size of the tokenizer; rows beyond it are never sampled.
            thread: where every step runs.
        """
        self._llm = llm
        self._vocab_size = vocab_size
        self._thread = thread
        self._running = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[int, None]:
        """Give the answer's token ids; each is one turn on the device thread."""
        sampling = request.sampling
        steps = generate(
            self._llm,
            request.embeddings,
            SamplingParameters(
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                temperature=sampling.temperature,
                repetition_penalty=sampling.repetition_penalty,
                seed=sampling.seed,
            ),
            prompt_ids=request.text_ids,
            vocab_size=self._vocab_size,
            eos_token_ids=request.stop_token_ids,
            max_new_tokens=request.max_new_tokens,
        )
        self._running += 1
        try:
            while (token := await self._thread.run(next, steps, None)) is not None:
                yield token
        finally:
            self._running -= 1  # the KV cache belongs to `steps` and goes with it

    def stats(self) -> BackendStats:
        """Count the running sequences."""
        return BackendStats(running=self._running)

    async def close(self) -> None:
        """Nothing outlives the process's memory."""
