"""Runs in Triton's own process, in the streaming model: tells the front which clients went away, and puts errors right.

PyTriton hands the requests of a decoupled model on and never asks Triton about them again: what nobody reads any more
would be generated to its end. This file lies beside `triton_model.py` there, and like it imports nothing of this
project.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from itertools import count
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NUMBER: Final = "multimodal-stream"
"""Parameter of a request, by which the front knows it."""
SOCKET: Final = "gone"
"""In PyTriton's workspace; the front hears there the numbers of requests that nobody reads any more."""
POLL_SECONDS: Final = 0.05
FINAL: Final = 1
"""Triton's flag of a request's last response."""


class Watched:
    """A request with a number, and its own response sender: PyTriton asks both of one object."""

    def __init__(self, request: Any, number: int, correct: Callable[[Any], Any]) -> None:  # noqa: ANN401 -- Triton's
        """Take over a request.

        Args:
            request: Triton's.
            number: its own.
            correct: gives what is sent in place of a response that is an error.
        """
        self.number = number
        self._request = request
        self._sender = request.get_response_sender()
        self._correct = correct
        self._lock = threading.Lock()
        self._ended = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever else PyTriton asks of a request
        return getattr(self._request, name)

    def parameters(self) -> str:
        """Give the client's parameters, and the number."""
        return json.dumps(json.loads(self._request.parameters()) | {NUMBER: self.number})

    def get_response_sender(self) -> Watched:
        """Give what has `send`."""
        return self

    def send(self, response: Any, flags: int = 0) -> None:  # noqa: ANN401 -- Triton's
        """Send a response, or the end."""
        if response is not None and response.has_error():
            response = self._correct(response)
        with self._lock:
            self._ended = flags == FINAL
            if response is None:
                self._sender.send(flags=flags)
            else:
                self._sender.send(response, flags)

    @property
    def ended(self) -> bool:
        """Say whether the last response has been sent."""
        return self._ended

    def gone(self) -> bool:
        """Say whether nobody reads the responses any more. After the last one Triton must not be asked."""
        with self._lock:
            return not self._ended and bool(self._sender.is_cancelled())


class Watch:
    """Looks after requests until they end. Each that is gone is told of until the front has ended it."""

    def __init__(self, workspace: Path, correct: Callable[[Any], Any]) -> None:
        """Begin.

        Args:
            workspace: of PyTriton.
            correct: gives what is sent in place of a response that is an error.
        """
        self._correct = correct
        self._numbers = count(1)
        self._where = str(workspace / SOCKET)
        self._requests: list[Watched] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def take(self, request: Any) -> Watched:  # noqa: ANN401 -- Triton's
        """Give a request a number, for PyTriton to hand on."""
        return Watched(request, next(self._numbers), self._correct)

    def add(self, request: Watched) -> None:
        """Look after a request that was handed on."""
        with self._changed:
            self._requests.append(request)
            self._changed.notify()

    def _look(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
            telling.settimeout(0)
            while True:
                with self._changed:
                    self._requests = [request for request in self._requests if not request.ended]
                    self._changed.wait_for(lambda: bool(self._requests))
                    requests = list(self._requests)
                for request in requests:
                    if request.gone():
                        _tell(telling, self._where, request.number)
                time.sleep(POLL_SECONDS)


def _tell(telling: socket.socket, where: str, number: int) -> None:
    try:
        telling.sendto(str(number).encode(), where)
    except OSError:
        return  # the front is busy, or ends: it is told again
