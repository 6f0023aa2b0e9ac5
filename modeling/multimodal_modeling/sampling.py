"""From logits to the next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

COLDEST: Final = 1e-6
"""Temperatures below this are the same as this: float32 would make nothing of them."""


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How a token is chosen; the defaults are the wire's, and greedy.

    `top_k` 0 and `top_p` 0 switch their cut off; both off is greedy too, as in TensorRT-LLM.
    """

    top_k: int = 1
    """Candidates kept, or 0."""
    top_p: float = 0.0
    """Probability mass of the candidates kept, or 0."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of prompt and answer less likely."""
    seed: int | None = None
    """Makes sampling repeatable."""

    @property
    def greedy(self) -> bool:
        """Whether the best token is always taken."""
        return self.top_k == 1 or self.temperature == 0 or (self.top_k == 0 and self.top_p == 0)


def make_generator(parameters: SamplingParameters) -> torch.Generator:
    """Make the source of randomness of one answer; on the CPU, so that a seed means the same on every device."""
    generator = torch.Generator()
    if parameters.seed is None:
        generator.seed()
    else:
        generator.manual_seed(parameters.seed)
    return generator


def sample(
    logits: Tensor,
    parameters: SamplingParameters,
    *,
    vocab_size: int,
    history: Sequence[int],
    generator: torch.Generator,
) -> int:
    """Choose one token.

    Args:
        logits: [rows], the model's scores; rows beyond the tokenizer are untrained padding.
        parameters: How to choose.
        vocab_size: Size of the tokenizer; ids at or above it are never chosen.
        history: Token ids of the prompt's text and of the answer so far.
        generator: Source of randomness, on the CPU.
    """
    scores = logits[:vocab_size].float().cpu()
    scores = _penalise(scores, history, parameters.repetition_penalty)
    if parameters.greedy:
        return int(scores.argmax())
    scores = (scores - scores.max()) / max(parameters.temperature, COLDEST)
    if 0 < parameters.top_k < vocab_size:
        scores = scores.masked_fill(scores < scores.topk(parameters.top_k).values[-1], -torch.inf)
    probabilities = _nucleus(scores.softmax(-1), parameters.top_p)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _penalise(scores: Tensor, history: Sequence[int], penalty: float) -> Tensor:
    """Push seen tokens away from being chosen: positive scores are divided, negative ones multiplied."""
    if penalty == 1 or not history:
        return scores
    seen = torch.tensor(sorted({token for token in history if token < scores.shape[0]}), dtype=torch.long)
    chosen = scores[seen]
    return scores.index_copy(0, seen, torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the fewest tokens that together have the probability `top_p`; the best one always stays."""
    if not 0 < top_p < 1:
        return probabilities
    ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    beyond = before >= top_p
    beyond[0] = False  # whatever float32 makes of a tiny top_p
    kept = ordered.masked_fill(beyond, 0.0)
    return torch.zeros_like(probabilities).index_copy(0, order, kept)
