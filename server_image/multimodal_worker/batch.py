"""A running batch: sequences join and leave between steps, and a step gives each of them at most one token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch

from multimodal_modeling.sampling import Chooser, NotFiniteError, scores_of, token_score
from multimodal_worker.backends.base import Token

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from multimodal_modeling.kv import KvPool, SequenceCache
    from multimodal_modeling.llm import LanguageModel
    from multimodal_worker.backends.base import GenerateRequest

PREFILL_POSITIONS: Final = 128
"""Of prompts, between two steps of those that answer: they wait for about one such piece of work. Prompts are cut at
multiples of it, so that how a prompt is computed does not depend on its neighbours."""
MAX_ROWS: Final = 16
"""Of a pass. The weights are read once for all rows; far beyond this number a CPU computes longer than it reads."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One request in the batch."""

    request: GenerateRequest
    cache: SequenceCache
    chooser: Chooser
    given: int = 0
    last: int = 0
    """Chosen last, and not in the cache yet; of no meaning before the first."""


Outcome = tuple[Sequence, Token | Exception | None]
"""What a step did for a sequence; None and an exception are its end."""


@dataclass(slots=True)
class Batch:
    """The sequences that run. Not for several threads."""

    llm: LanguageModel
    pool: KvPool
    vocab_size: int
    """Of the tokenizer; rows beyond it are never chosen."""
    rows: int
    """Of every decoding pass."""
    _filling: dict[Sequence, None] = field(default_factory=dict)
    """Those whose prompt is not in the cache yet, first come first."""
    _decoding: dict[Sequence, None] = field(default_factory=dict)

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self._filling) + len(self._decoding)

    def join(self, request: GenerateRequest) -> Sequence | None:
        """Take a request in; None when there is no memory for its whole answer now."""
        cache = self.pool.reserve(positions(request))
        if cache is None:
            return None
        chooser = Chooser(
            request.sampling,
            prompt_ids=request.text_ids,
            stop_token_ids=request.stop_token_ids,
            min_new_tokens=request.min_new_tokens,
        )
        sequence = Sequence(request, cache, chooser)
        self._filling[sequence] = None
        return sequence

    def leave(self, sequence: Sequence) -> None:
        """Free what a sequence holds; one that has left is left alone."""
        if sequence in self._filling:
            del self._filling[sequence]
        elif sequence in self._decoding:
            del self._decoding[sequence]
        else:
            return
        self.pool.release(sequence.cache)

    @torch.inference_mode()
    def step(self) -> list[Outcome]:
        """Compute a piece of the prompts that wait, then one token for every sequence whose prompt is there.

        Sequences that end have left.
        """
        return self._fill() + self._decode()

    def _fill(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        budget = PREFILL_POSITIONS
        while self._filling and budget > 0:
            first = next(iter(self._filling))
            budget -= len(_piece(first))
            outcomes += self._guard(self._fill_piece, [first])
        return outcomes

    def _fill_piece(self, together: list[Sequence]) -> list[Outcome]:
        (sequence,) = together
        logits = self.llm.prefill(_piece(sequence), sequence.cache)
        if sequence.cache.length < len(sequence.request.embeddings):
            return []
        del self._filling[sequence]
        self._decoding[sequence] = None
        return self._choose(together, logits[None])

    def _decode(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        decoding = list(self._decoding)
        for begin in range(0, len(decoding), self.rows):
            together = decoding[begin : begin + self.rows]
            outcomes += self._guard(self._decode_rows, together)
        return outcomes

    def _decode_rows(self, together: list[Sequence]) -> list[Outcome]:
        logits = self.llm.decode(
            [sequence.last for sequence in together],
            self.pool,
            [sequence.cache for sequence in together],
            rows=self.rows,
        )
        return self._choose(together, logits)

    def _choose(self, sequences: list[Sequence], logits: Tensor) -> list[Outcome]:
        """Give each sequence its next token: [sequences, vocabulary rows]."""
        scores = scores_of(logits, self.vocab_size)
        best = scores.argmax(-1).tolist()
        finite = scores.sum(-1).isfinite().tolist()  # a sum with a score that is no finite number is none either
        outcomes: list[Outcome] = []
        for row, sequence in enumerate(sequences):
            if not finite[row]:
                outcomes.append(self._end(sequence, NotFiniteError()))
            else:
                chooser = sequence.chooser
                token = best[row] if chooser.takes_the_best else chooser.choose(scores[row].cpu())
                outcomes += self._take(sequence, token, scores, row)
        return outcomes

    def _take(self, sequence: Sequence, token: int, scores: Tensor, row: int) -> list[Outcome]:
        """Go on with a token that was chosen from one row of `scores`, [sequences, vocabulary]."""
        request = sequence.request
        if token in request.stop_token_ids:
            return [self._end(sequence, None)]
        sequence.chooser.take(token)
        sequence.last = token
        sequence.given += 1
        top = request.top_logprobs
        said = Token(token, token_score(scores[row], token, top=top) if top is not None else None)
        if sequence.given < request.max_new_tokens:
            return [(sequence, said)]
        return [(sequence, said), self._end(sequence, None)]

    def _guard(self, work: Callable[[list[Sequence]], list[Outcome]], together: list[Sequence]) -> list[Outcome]:
        """Work; an error is the end of those sequences, and of no other."""
        try:
            return work(together)
        except Exception as error:  # noqa: BLE001 -- whatever it is, those who wait must hear it
            return [self._end(sequence, error) for sequence in together]

    def _end(self, sequence: Sequence, how: Exception | None) -> Outcome:
        self.leave(sequence)
        return sequence, how


def positions(request: GenerateRequest) -> int:
    """Count what a request may take in the cache: the last token of an answer is never computed with."""
    return len(request.embeddings) + request.max_new_tokens - 1


def _piece(sequence: Sequence) -> Tensor:
    """Give the part of a prompt that comes next."""
    begin = sequence.cache.length
    return sequence.request.embeddings[begin : begin + PREFILL_POSITIONS]
