"""The front's ends of the sockets of `triton_calls.py`: each has a thread that answers what comes there."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from multimodal_api.errors import ProductError
from multimodal_server import triton_calls
from multimodal_server.refusal import words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    Answer = Callable[[Mapping[str, NDArray[Any]]], list[str]]


class Place(threading.Thread):
    """Answers one request at a time, until Triton's end is gone."""

    def __init__(self, path: Path, answer: Answer) -> None:
        """Connect.

        Args:
            path: where `triton_calls.Calls` listens.
            answer: raises nothing but ProductError.

        Raises:
            OSError: it does not.
        """
        super().__init__(name="answer", daemon=True)
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self.start()

    def close(self) -> None:
        """Answer no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Answer; `is_alive` tells whether it still does."""
        while (frame := triton_calls.receive(self._socket)) is not None:
            said = self._say(triton_calls.tensors_of(frame))
            with suppress(OSError):  # then the next turn ends it
                triton_calls.send(self._socket, said)

    def _say(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, object]:
        try:
            return {"texts": self._answer(tensors)}
        except ProductError as error:
            return dict(words(error.failure))
