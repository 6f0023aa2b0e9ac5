"""From a question to answers, for both ports."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from multimodal_api.errors import ProductError
from multimodal_api.logs import FIELDS
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Sampling
from multimodal_recipes import first_question
from multimodal_server.limits import NAMES, read_question
from multimodal_server.questions import Question, Said, prepare
from multimodal_server.replies import Reply
from multimodal_server.streams import asking
from multimodal_server.whole import Nobody, Whole

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping
    from typing import Any

    from numpy.typing import NDArray

    from multimodal_server.engine import ServedEngine
    from multimodal_server.metrics import Metrics
    from multimodal_server.questions import Prepared
    from multimodal_server.whole import Caller
    from multimodal_server.worker_client import WorkerClient

LOG: Final = logging.getLogger(__name__)

MAX_WAITING: Final = 64
"""Requests for whole answers that wait for a place among those that run; one more is refused as unavailable."""


class Responder:
    """Answers questions with one engine and one worker."""

    def __init__(self, engine: ServedEngine, worker: WorkerClient, metrics: Metrics) -> None:
        self.engine = engine
        self.worker = worker
        self._metrics = metrics
        self.most = engine.limits.max_batch_size + MAX_WAITING
        """Requests for whole answers that `answer` takes at once."""
        self._places = threading.BoundedSemaphore(self.most)

    def answer(self, tensors: Mapping[str, NDArray[Any]], caller: Caller) -> None:
        """Answer one request of the wire.

        Args:
            tensors: of the request, by name.
            caller: is given the answer once, before this returns, from another thread; raises nothing, and does not
                take long.

        Raises:
            ProductError: refused, or failed, and nothing was given; nothing else is ever raised.
        """
        with self.handling(), self._place():
            Whole(self, self.prepare(read_question(tensors, self.engine.limits, self.engine.recipe)), caller).ask()

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Take a place among the requests for whole answers.

        Raises:
            ProductError: there is none.
        """
        if not self._places.acquire(blocking=False):
            raise ProductError(
                Reason.SERVER_BUSY,
                at="queue",
                problem=f"{self.most} requests run or wait already",
                remedy="send the request again later, or raise spec.serving.replicas or spec.limits.maxBatchSize",
            )
        try:
            yield
        finally:
            self._places.release()

    async def answer_in_pieces(self, tensors: Mapping[str, NDArray[Any]]) -> AsyncGenerator[list[str], None]:
        """Answer one request of the wire as it comes; closing the iterator before its end cancels the answers.

        Args:
            tensors: of the request, by name.

        Yields:
            What is new of each copy that was asked for, at least once; joined, they are what `answer` returns.

        Raises:
            ProductError: refused, or failed; nothing else is ever raised.
        """
        with self.handling():
            given = False
            async with asking(
                self, lambda: self.prepare(read_question(tensors, self.engine.limits, self.engine.recipe))
            ) as answers:
                replies, copies = answers.replies, answers.prepared.question.copies
                async for number, piece in answers.pieces():
                    if piece.text:
                        given = True
                        yield [piece.text if len(replies) == 1 or number == row else "" for row in range(copies)]
            if not given:  # a client that waits for the first response would never hear of the end
                yield [""] * copies

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Count one request, and let nothing but refusals out."""
        with self._metrics.request() as outcome:
            try:
                yield
            except ProductError as error:
                outcome.reason = error.failure.reason
                fields = {"reason": error.failure.reason, "at": error.failure.at}
                self._metrics.later.say(partial(LOG.info, "request refused", extra={FIELDS: fields}))
                raise
            except Exception as error:
                outcome.reason = Reason.INTERNAL
                self._metrics.later.say(partial(LOG.error, "a request failed", exc_info=error))
                raise ProductError(
                    Reason.INTERNAL,
                    at="server",
                    problem=f"{type(error).__name__} while the request was handled",
                    remedy="report it with the container's log",
                ) from error

    def prepare(self, question: Question) -> Prepared:
        """Check a question and make it ready for the worker.

        Raises:
            ProductError: the engine has no room for it.
        """
        prepared = prepare(question, self.engine)
        self._metrics.prompt_tokens.inc(len(prepared.prompt.ids))
        self._metrics.media_tokens.inc(prepared.prompt.media_length)
        return prepared

    def replies(self, prepared: Prepared, *, stream: bool) -> list[Reply]:
        """Make the answers that must be computed; `stream` says whether they are wanted as they come."""
        return [
            Reply(
                prepared, self.engine, self._metrics, request_id=self.worker.next_id(), sampling=sampling, stream=stream
            )
            for sampling in _samplings(prepared.question)
        ]

    def warm_up(self) -> None:
        """Ask one real question, so that the first user does not wait for what happens once.

        Raises:
            ProductError: there is no answer.
        """
        recipe = self.engine.recipe
        question = Question(
            turns=(Said((first_question.show(recipe), recipe.template.default_text)),),
            sampling=Sampling(),
            max_output_len=min(first_question.ANSWER_TOKENS, self.engine.limits.max_output_len),
            names=NAMES,
        )
        try:
            prepared = self.prepare(question)
        except ProductError as error:
            # The builder has made sure that there is room; but a deployment may have a prompt of its own.
            refusal = error.failure
            raise ProductError(
                Reason.LIMITS_TOO_SMALL,
                at="warm-up",
                problem=f"the server's first question, the template's default text about one medium, is refused: "
                f"{refusal.at} {refusal.problem}",
                remedy=f"{refusal.remedy}, or shorten what spec.prompt adds",
            ) from error
        Whole(self, prepared, Nobody()).ask()


def _samplings(question: Question) -> list[Sampling]:
    """Say how each answer that must be computed is sampled: greedy ones are all the same."""
    sampling = question.sampling
    if sampling.greedy:
        return [sampling]
    seeds = [(sampling.seed + copy) % 2**63 for copy in range(question.copies)]
    return [sampling.model_copy(update={"seed": seed}) for seed in seeds]
