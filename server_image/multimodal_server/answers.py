"""From a checked question to answers: prompt, pixels, the worker's tokens, text."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_api import wire
from multimodal_api.errors import ProductError
from multimodal_api.logs import FIELDS
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Done, FinishReason, Generate, MediaInput, MediaSpan, Sampling
from multimodal_recipes.images import preprocess
from multimodal_recipes.layout import lay_out
from multimodal_recipes.prompt import Turn, render
from multimodal_recipes.tokenizer import TextStream
from multimodal_server.limits import Question, check_prompt, read_question

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from multimodal_recipes.prompt import Prompt
    from multimodal_server.engine import ServedEngine
    from multimodal_server.metrics import Metrics
    from multimodal_server.worker_client import WorkerClient

LOG: Final = logging.getLogger(__name__)

TOKEN_SECONDS: Final = 600.0
"""Longest wait for the next token, queueing included: beyond it the client is told."""
_WARM_UP_TOKENS: Final = 2
"""One comes from the prompt, one from the KV cache: both code paths have run."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    prompt: Prompt
    pixels: NDArray[np.float32]
    """[frames, 3, size, size]"""


class Responder:
    """Answers questions with one engine and one worker."""

    def __init__(self, engine: ServedEngine, worker: WorkerClient, metrics: Metrics) -> None:
        self._engine = engine
        self._worker = worker
        self._metrics = metrics
        self._copies = ThreadPoolExecutor(engine.limits.max_batch_size, thread_name_prefix="copies")

    def answer(self, tensors: Mapping[str, NDArray[Any]]) -> list[str]:
        """Answer one request of the wire.

        Args:
            tensors: of the request, by name.

        Returns:
            One text for each copy that was asked for.

        Raises:
            ProductError: refused, or failed; nothing else is ever raised.
        """
        with self._metrics.request() as outcome:
            try:
                return self._answer(read_question(tensors, self._engine.limits))
            except ProductError as error:
                outcome.reason = error.failure.reason
                LOG.info("request refused", extra={FIELDS: {"reason": error.failure.reason, "at": error.failure.at}})
                raise
            except Exception as error:
                outcome.reason = Reason.INTERNAL
                LOG.exception("a request failed")
                raise ProductError(
                    Reason.INTERNAL,
                    at="server",
                    problem=f"{type(error).__name__} while the request was handled",
                    remedy="report it with the container's log",
                ) from error

    def warm_up(self) -> None:
        """Ask one real question, so that the first user does not wait for what happens once.

        Raises:
            ProductError: there is no answer.
        """
        template, vision = self._engine.recipe.template, self._engine.recipe.seeing()
        edge = vision.preprocessing.image_size
        question = Question(
            text=template.default_text,
            frames=np.full((1, edge, edge, 3), 127, np.uint8),
            copies=1,
            max_output_len=min(_WARM_UP_TOKENS, self._engine.limits.max_output_len),
            sampling=Sampling(),
        )
        self._answer(question)

    def _answer(self, question: Question) -> list[str]:
        prepared = self._prepare(question)
        self._metrics.prompt_tokens.inc(len(prepared.prompt.ids))
        self._metrics.media_tokens.inc(prepared.prompt.media_length)
        if question.sampling.greedy or question.copies == 1:
            return [self._generate(question, prepared, question.sampling)] * question.copies
        seeds = [(question.sampling.seed + copy) % 2**63 for copy in range(question.copies)]
        samplings = [question.sampling.model_copy(update={"seed": seed}) for seed in seeds]
        return list(self._copies.map(lambda sampling: self._generate(question, prepared, sampling), samplings))

    def _prepare(self, question: Question) -> _Prepared:
        recipe = self._engine.recipe
        vision = recipe.seeing()
        turn = Turn((lay_out(vision, len(question.frames)), question.text))
        prompt = self._engine.tokenizer.encode(render(recipe.template, (turn,)))
        check_prompt(
            prompt,
            max_output_len=question.max_output_len,
            limits=self._engine.limits,
            max_positions=recipe.max_positions,
        )
        return _Prepared(
            prompt=prompt,
            pixels=preprocess(question.frames, vision.preprocessing, at=wire.INPUT_MEDIA.name),
        )

    def _generate(self, question: Question, prepared: _Prepared, sampling: Sampling) -> str:
        """Collect one answer, up to a stop token, a stop string or the limit."""
        request = Generate(
            request_id=self._worker.next_id(),
            token_ids=prepared.prompt.ids,
            media=(
                MediaInput(
                    shape=prepared.pixels.shape,
                    spans=tuple(MediaSpan(start=span.start, length=span.length) for span in prepared.prompt.media),
                ),
            ),
            sampling=sampling,
            max_new_tokens=question.max_output_len,
            stop_token_ids=self._engine.stop_token_ids,
        )
        begun = time.monotonic()
        first: float | None = None
        tokens = 0
        finish = FinishReason.STOP  # by a stop string, unless the worker says otherwise
        text = TextStream(self._engine.tokenizer, self._engine.recipe.stop_strings)
        with closing(self._worker.generate(request, [prepared.pixels.data], timeout=TOKEN_SECONDS)) as events:
            for event in events:
                if isinstance(event, Done):
                    finish = event.reason
                    self._metrics.queue.observe(event.timing.queue)
                    self._metrics.encode.observe(event.timing.encode)
                    break
                first = first or time.monotonic() - begun
                tokens += len(event.token_ids)
                text.push(event.token_ids)
                if text.stopped:
                    break
        text.finish()
        if first is not None:
            self._metrics.first_token.observe(first)
        self._metrics.generated_tokens.inc(tokens)
        LOG.info(
            "request answered",
            extra={
                FIELDS: {
                    "request_id": request.request_id,
                    "prompt_tokens": len(request.token_ids),
                    "media_tokens": prepared.prompt.media_length,
                    "generated_tokens": tokens,
                    "finish": finish,
                    "first_token_seconds": round(first, 4) if first is not None else None,
                    "seconds": round(time.monotonic() - begun, 4),
                }
            },
        )
        return text.text.strip()
