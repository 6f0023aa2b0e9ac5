"""The front's ends of the sockets of `triton_calls.py`: each has a thread that answers what comes there."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from multimodal_api.errors import ProductError
from multimodal_server import triton_calls
from multimodal_server.refusal import words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from multimodal_server.whole import Give

    Answer = Callable[[Mapping[str, NDArray[Any]], Give], None]

SEND_SECONDS: Final = 5


class Place(threading.Thread):
    """Answers one request at a time, until Triton's end is gone."""

    def __init__(self, path: Path, answer: Answer) -> None:
        """Connect.

        Args:
            path: where `triton_calls.Calls` listens.
            answer: gives the texts of one request, once, or raises a ProductError; nothing else.

        Raises:
            OSError: it does not.
        """
        super().__init__(name="answer", daemon=True)
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        # The thread that sends hears the worker, for all: Triton's end reads at once, or is as good as gone.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", SEND_SECONDS, 0))
        self.start()

    def close(self) -> None:
        """Answer no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Answer; `is_alive` tells whether it still does."""
        while (frame := triton_calls.receive(self._socket)) is not None:
            try:
                self._answer(triton_calls.tensors_of(frame), self._give)
            except ProductError as error:
                self._say(words(error.failure))

    def _give(self, texts: list[str]) -> None:
        self._say({"texts": texts})

    def _say(self, said: Mapping[str, object]) -> None:
        try:
            triton_calls.send(self._socket, said)
        except OSError:  # perhaps in the middle of a frame
            self.close()
