"""Triton's process may end while the engine, which took long to load, is as good as before: it is started again.

Two things end it that are not the fault of this software: a process of its model that comes late with the word that it
lives, on a machine that is busy beyond measure, and a request in whose JSON document a shape asks for more memory than
Triton may have.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from multimodal_api.errors import Failure, ProductError
from multimodal_api.logs import FIELDS
from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_server.triton import Triton

LOG: Final = logging.getLogger(__name__)
MENDS: Final = 3
SPAN_SECONDS: Final = 600.0
"""Triton is started again so many times within so many seconds; the end after that is the server's."""


@dataclass(frozen=True, slots=True)
class Published:
    """Triton has the model."""


@dataclass(frozen=True, slots=True)
class Unpublished:
    """Triton does not have the model."""

    failure: Failure


class Keeper:
    """Keeps Triton going, with the model in it."""

    def __init__(
        self,
        triton: Triton,
        publish: Callable[[], None],
        tell: Callable[[Published | Unpublished], None],
        count: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            triton: what is kept.
            publish: offers the model to it; returns when it is ready.
            tell: is told how that ended, from another thread.
            count: is called when Triton is started again.
            clock: gives seconds.
        """
        self._triton = triton
        self._publish = publish
        self._tell = tell
        self._count = count
        self._clock = clock
        self._mended: deque[float] = deque(maxlen=MENDS)
        self._published = threading.Event()

    def start(self) -> None:
        """Start Triton and begin to offer the model. Call it from a thread that lives as long as Triton should.

        Raises:
            ProductError: Triton does not start.
        """
        self._published.clear()
        self._triton.start()
        threading.Thread(target=self._offer, name="publish", daemon=True).start()

    def check(self) -> Failure | None:
        """Give the failure if Triton had the model, and has ended."""
        if not self._published.is_set() or self._triton.is_alive():
            return None
        return _failure("Triton's process ended")

    def mend(self, failure: Failure) -> Failure | None:
        """Start Triton again, from the thread that called `start`; give the failure back when it is not to be mended.

        Args:
            failure: why it must be.
        """
        now = self._clock()
        if len(self._mended) == MENDS and now - self._mended[0] < SPAN_SECONDS:
            return failure
        self._mended.append(now)
        LOG.warning("Triton is started again: %s", failure, extra={FIELDS: {"reason": failure.reason}})
        self._count()
        self._triton.forget()
        try:
            self.start()
        except ProductError as error:
            return self.mend(error.failure)
        return None

    def _offer(self) -> None:
        try:
            self._publish()
        except Exception as error:
            LOG.exception("Triton does not take the model")
            self._tell(Unpublished(_failure(f"it does not take the model: {error}")))
        else:
            self._published.set()
            self._tell(Published())


def _failure(problem: str) -> Failure:
    return Failure(reason=Reason.SERVER_FAILED, at="triton", problem=problem, remedy="see its log lines above")
