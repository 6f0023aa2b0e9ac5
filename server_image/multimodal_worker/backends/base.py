"""Where the worker and every engine library meet."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path
    from typing import NoReturn

    import torch

    from multimodal_api.engine import BuildInputs
    from multimodal_api.worker_protocol import Sampling, TokenScore
    from multimodal_worker.device import DeviceThread


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt for a language model."""

    embeddings: torch.Tensor
    """[positions, hidden], media rows in place."""
    text_ids: tuple[int, ...]
    """The prompt without its media positions, for the repetition penalty."""
    sampling: Sampling
    max_new_tokens: int
    stop_token_ids: frozenset[int]
    min_new_tokens: int = 0
    top_logprobs: int | None = None
    """How many of the best tokens to score beside each token; None scores nothing."""
    stream: bool = True
    """Whether tokens are wanted as they come; else they may all come when the answer is complete."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer."""

    id: int
    score: TokenScore | None = None
    """Where the request asks for it."""
    at: float = field(default_factory=time.monotonic, compare=False)
    """When it was chosen, from `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class BackendStats:
    """What a backend is doing."""

    running: int
    """Sequences that hold a KV cache."""
    waiting: int = 0
    """Sequences that wait for the memory of one."""
    kv_positions: int = 0
    """Positions that the KV memory holds; 0 where it is not known."""
    kv_positions_used: int = 0


class Backend(Protocol):
    """One loaded language model."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Token, None]:
        """Give the answer's tokens without the stop token; closing the iterator cancels and frees the slot."""
        ...

    def stats(self) -> BackendStats:
        """Count what runs."""
        ...

    async def close(self) -> None:
        """Free the device."""
        ...


class ItemEncoder(Protocol):
    """Encodes frames or sounds, several at once."""

    @property
    def takes_any_length(self) -> bool:
        """Whether items of one batch may be of different lengths."""
        ...

    def encode_together(self, items: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """[3, height, width] of frames of one shape, or [frames, bands] of sounds, to [rows, hidden] each."""
        ...


class Encoder(ItemEncoder, Protocol):
    """Makes prompt rows of media."""

    def arrange(self, features: torch.Tensor) -> torch.Tensor:
        """[frames, rows, hidden] of one medium to [positions, hidden], in the order of the prompt."""
        ...


class Embedder(Protocol):
    """Makes prompt embeddings."""

    def prompt_embeddings(self, ids: Sequence[int], media_at: Sequence[int], media: torch.Tensor) -> torch.Tensor:
        """Embed ids and put media rows at their positions: [positions, hidden]."""
        ...


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine in memory: media encoder and splice are this project's own for every backend."""

    encoder: Encoder
    embedder: Embedder
    backend: Backend
    hidden_size: int
    """Width of a row."""


class Loader(Protocol):
    """Loads an engine; runs on the device thread."""

    def __call__(self, model_dir: Path, inputs: BuildInputs, *, device: torch.device, thread: DeviceThread) -> Engine:
        """Load.

        Args:
            model_dir: the canonical model inside the engine.
            inputs: what the engine was built for.
            device: where it runs.
            thread: where steps run.

        Raises:
            ProductError: the library is not there, or the files contradict each other.
        """
        ...


def refuse(backend: str, module: str) -> NoReturn:
    """Refuse a backend that this version only declares."""
    if find_spec(module) is None:
        raise ProductError(
            Reason.BACKEND_UNAVAILABLE,
            at="spec.engine.backend",
            problem=f"{backend} is wanted, and this image does not hold the Python package {module}",
            remedy=f"set spec.serving.image to an image with {module}, or spec.engine.backend: torch",
        )
    raise ProductError(
        Reason.NOT_IMPLEMENTED,
        at="spec.engine.backend",
        problem=f"this version does not drive {backend} yet",
        remedy="set spec.engine.backend: torch",
    )
