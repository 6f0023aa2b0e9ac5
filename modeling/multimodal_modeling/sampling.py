"""From logits to the next token."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import torch

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import TokenScore

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from torch import Tensor

    from multimodal_api.worker_protocol import Sampling

COLDEST: Final = 1e-6
"""Temperatures below this are the same as this: float32 would make nothing of them."""


class NotFiniteError(ProductError):
    """A model's scores are no numbers."""

    def __init__(self) -> None:
        super().__init__(
            Reason.INTERNAL,
            at="language model",
            problem="its scores are not finite numbers",
            remedy="try dtype bfloat16 or float32: float16 overflows with models that were trained in bfloat16",
        )


class Chooser:
    """Chooses the tokens of one answer, and remembers them."""

    def __init__(
        self,
        sampling: Sampling,
        *,
        prompt_ids: Sequence[int],
        stop_token_ids: Collection[int] = (),
        min_new_tokens: int = 0,
    ) -> None:
        """Begin an answer.

        Args:
            sampling: How tokens are chosen.
            prompt_ids: The prompt's text, for the repetition penalty; media positions are left out.
            stop_token_ids: Not chosen among the first `min_new_tokens`.
            min_new_tokens: Least length of the answer.
        """
        self._sampling = sampling
        self._answer: Counter[int] = Counter()
        self._prompt = frozenset(prompt_ids)
        self._stops = tuple(stop_token_ids)
        self._min = min_new_tokens
        self._greedy = sampling.greedy
        self._as_scored = (
            sampling.repetition_penalty == 1 and sampling.frequency_penalty == 0 and sampling.presence_penalty == 0
        )
        # On the CPU, so that a seed means the same on every device.
        self._generator = torch.Generator().manual_seed(sampling.seed)

    @property
    def takes_the_best(self) -> bool:
        """Whether the next token is the one with the best score, so that the scores need no look."""
        return self._greedy and self._as_scored and not self._is_too_short

    def choose(self, scores: Tensor) -> int:
        """Choose one token.

        Args:
            scores: [vocabulary] float32 on the CPU, without rows beyond the tokenizer; not changed.

        Raises:
            NotFiniteError: a score is not finite.
        """
        if not torch.isfinite(scores).all():
            raise NotFiniteError
        scores = self._forbid(self._penalise(scores))
        if self._greedy:
            return int(scores.argmax())
        return int(torch.multinomial(candidates(scores, self._sampling), 1, generator=self._generator))

    def take(self, token: int) -> None:
        """Remember a chosen token."""
        self._answer[token] += 1

    @property
    def _is_too_short(self) -> bool:
        return self._min > 0 and self._answer.total() < self._min

    def _penalise(self, scores: Tensor) -> Tensor:
        """Push seen tokens away from being chosen."""
        penalty = self._sampling.repetition_penalty
        size = scores.shape[0]
        if penalty != 1:
            seen = _indices(token for token in self._prompt | self._answer.keys() if token < size)
            chosen = scores[seen]
            scores = scores.index_copy(0, seen, torch.where(chosen > 0, chosen / penalty, chosen * penalty))
        frequency, presence = self._sampling.frequency_penalty, self._sampling.presence_penalty
        if self._answer and (frequency or presence):
            given = _indices(self._answer)
            counts = torch.tensor([float(self._answer[int(token)]) for token in given])
            scores = scores.index_add(0, given, -(counts * frequency + presence))
        return scores

    def _forbid(self, scores: Tensor) -> Tensor:
        """Leave no stop token while the answer is too short."""
        if not self._is_too_short or not self._stops:
            return scores
        return scores.index_fill(0, _indices(stop for stop in self._stops if stop < scores.shape[0]), -torch.inf)


def scores_of(logits: Tensor, vocab_size: int) -> Tensor:
    """Cut padding off.

    Args:
        logits: [..., rows], the model's scores; rows beyond the tokenizer are untrained padding.
        vocab_size: Size of the tokenizer; ids at or above it are never chosen.

    Returns:
        [..., vocab_size] float32.
    """
    return logits[..., :vocab_size].float()


def token_score(scores: Tensor, token: int, *, top: int) -> TokenScore:
    """Look up what the model thinks of a token.

    Args:
        scores: [vocabulary] float32.
        token: The chosen one.
        top: How many of the best to name.
    """
    logprobs = scores.log_softmax(-1)
    best = logprobs.topk(min(top, logprobs.shape[0]))
    return TokenScore(
        logprob=float(logprobs[token]),
        top=tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)),
    )


def candidates(scores: Tensor, sampling: Sampling) -> Tensor:
    """Give the probabilities that a token is drawn from: [vocabulary], not normalised."""
    scores = (scores - scores.max()) / max(sampling.temperature, COLDEST)
    if 0 < sampling.top_k < scores.shape[0]:
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], -torch.inf)
    return _nucleus(scores.softmax(-1), sampling.top_p)


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


def _indices(tokens: Iterable[int]) -> Tensor:
    return torch.tensor(sorted(tokens), dtype=torch.long)
