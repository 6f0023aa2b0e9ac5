"""One answer as it comes: the worker's events become text, with the books kept."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from multimodal_api.logs import FIELDS
from multimodal_api.worker_protocol import Done, FinishReason, TokenScore
from multimodal_recipes.time_tokens import TimeStream
from multimodal_recipes.tokenizer import TextStream

if TYPE_CHECKING:
    from multimodal_api.worker_protocol import Generate, Sampling, Timing, Tokens
    from multimodal_server.engine import ServedEngine
    from multimodal_server.metrics import Metrics
    from multimodal_server.questions import Prepared

LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event adds to an answer."""

    text: str
    """Certain, and never taken back; blanks around the whole answer are left out."""
    token_ids: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()


class Reply:
    """One answer, fed with what the worker says about it until `finish` is there."""

    def __init__(
        self,
        prepared: Prepared,
        engine: ServedEngine,
        metrics: Metrics,
        *,
        request_id: int,
        sampling: Sampling,
        stream: bool,
    ) -> None:
        """Begin.

        Args:
            prepared: the question.
            engine: which answers.
            metrics: to count in.
            request_id: from the worker's client.
            sampling: of this answer.
            stream: whether its text is wanted as it comes.
        """
        texts = engine.stop_texts + prepared.question.stops
        # With a text that ends it, an answer is read as it comes: else the worker would go on behind it.
        self.request: Generate = prepared.request(
            request_id, sampling, engine.stop_token_ids, stream=stream or bool(texts)
        )
        self.finish: FinishReason | None = None
        """Why the answer ended."""
        self.tokens = 0
        """Of the answer so far."""
        self._media_tokens = prepared.prompt.media_length
        self._metrics = metrics
        self._text = TextStream(engine.tokenizer, (*engine.recipe.stop_strings, *prepared.question.stops))
        times, seconds = engine.recipe.time_tokens, prepared.seconds
        self._times = None if times is None or seconds is None else TimeStream(times, seconds)
        self._blank: str | None = None
        """Blanks held back, since they may be the last; None before the first word."""
        self._begun = time.monotonic()
        self._moments: list[float] = []
        """Seconds to each token."""
        self._timing: Timing | None = None
        """The worker's, of an answer that it ended."""

    def feed(self, event: Tokens | Done) -> Piece:
        """Take the next event."""
        if not isinstance(event, Done):
            return self._add(event)
        self._timing = event.timing
        rest = Piece("") if event.rest is None else self._add(event.rest)
        if self.finish is not None:  # by a text in the rest
            return rest
        self.finish = event.reason
        return replace(rest, text=rest.text + self._told(self._text.finish(), whole=True))

    def _add(self, event: Tokens) -> Piece:
        self._moments += event.seconds
        self.tokens += len(event.token_ids)
        text = self._text.push(event.token_ids)
        if self._text.stopped:
            self.finish = FinishReason.STOP
        return Piece(self._told(text, whole=self._text.stopped), event.token_ids, event.scores)

    def close(self) -> None:
        """Write it down, however it ended."""
        self._metrics.later.count(self._count)
        self._metrics.later.say(partial(self._say, time.monotonic() - self._begun))

    def _count(self) -> None:
        if self._timing is not None:
            self._metrics.queue.observe(self._timing.queue)
            self._metrics.encode.observe(self._timing.encode)
        if self._moments:
            self._metrics.first_token.observe(self._moments[0])
        for before, after in pairwise(self._moments):
            self._metrics.inter_token.observe(after - before)
        self._metrics.generated_tokens.inc(self.tokens)

    def _say(self, seconds: float) -> None:
        first = round(self._moments[0], 4) if self._moments else None
        LOG.info(
            "request answered",
            extra={
                FIELDS: {
                    "request_id": self.request.request_id,
                    "prompt_tokens": len(self.request.token_ids),
                    "media_tokens": self._media_tokens,
                    "generated_tokens": self.tokens,
                    "finish": self.finish or FinishReason.CANCELLED,
                    "first_token_seconds": first,
                    "seconds": round(seconds, 4),
                }
            },
        )

    def _told(self, text: str, *, whole: bool) -> str:
        """Give what is told of the next text: moments in seconds, no blanks around the answer."""
        if self._times is not None:
            text = self._times.push(text) + (self._times.finish() if whole else "")
        return self._trim(text)

    def _trim(self, text: str) -> str:
        """Leave out blanks in front of the answer and behind it."""
        if self._blank is None:
            text = text.lstrip()
            if not text:
                return ""
        whole = (self._blank or "") + text
        given = whole.rstrip()
        self._blank = whole[len(given) :]
        return given
