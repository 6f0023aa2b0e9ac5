"""A worker without a model, run as a process: it speaks the protocol and answers by script.

The first token id of a prompt says what it does: 1 gives ids 10, 11, … up to the limit; 2 is refused; 3 is silent; 4
ends the process; 5 gives one token and no end; 6 says something that is no message. Asked for stats it gives the number
of cancellations as `running`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

import msgpack

from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import (
    AskStats,
    Cancel,
    Codec,
    Done,
    Failed,
    FinishReason,
    Generate,
    Message,
    Ready,
    Refused,
    Shutdown,
    Stats,
    Timing,
    Tokens,
)

CODEC = Codec(msgpack.packb, msgpack.unpackb)
FAILURE = Failure(reason=Reason.OUT_OF_GPU_MEMORY, at="here", problem="no room", remedy="make room")


def receive(sock: socket.socket) -> Message | None:
    frame = CODEC.receive()
    wanted = next(frame)
    while True:
        part = bytearray()
        while len(part) < wanted:
            got = sock.recv(wanted - len(part))
            if not got:
                return None
            part += got
        try:
            wanted = frame.send(part)
        except StopIteration as whole:
            return whole.value[0]  # type: ignore[no-any-return]


class Worker:
    """The script."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._cancelled = 0

    def say(self, message: Message) -> None:
        self._sock.sendall(b"".join(bytes(piece) for piece in CODEC.encode(message)))

    def done(self, request_id: int, reason: FinishReason) -> None:
        self.say(Done(request_id=request_id, reason=reason, timing=Timing(queue=0, encode=0, generate=0)))

    def hear(self, message: Message) -> None:
        match message:
            case Generate():
                self.answer(message, message.token_ids[0])
            case Cancel():
                self._cancelled += 1
                self.done(message.request_id, FinishReason.CANCELLED)
            case AskStats():
                counts = {
                    "waiting": 0,
                    "kv_positions": 0,
                    "kv_positions_used": 0,
                    "media_cache_hits": 0,
                    "media_cache_misses": 0,
                    "media_cache_bytes": 0,
                }
                self.say(Stats(running=self._cancelled, **counts))
            case _:
                raise AssertionError(message)

    def answer(self, message: Generate, what: int) -> None:
        request_id = message.request_id
        match what:
            case 1:
                for token in range(message.max_new_tokens):
                    self.say(Tokens(request_id=request_id, token_ids=(10 + token,)))
                self.done(request_id, FinishReason.LENGTH)
            case 2:
                self.say(Refused(request_id=request_id, failure=FAILURE))
            case 4:
                os.kill(os.getpid(), signal.SIGKILL)
            case 5:
                self.say(Tokens(request_id=request_id, token_ids=(7,)))
            case 6:
                self._sock.sendall(b"\xff" * 64)
            case _:
                pass  # silence


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    worker = Worker(sock)
    if sys.argv[2] == "fail":
        worker.say(Failed(failure=FAILURE))
        os._exit(1)
    worker.say(Ready(device="none", seconds={}))
    while (message := receive(sock)) is not None and not isinstance(message, Shutdown):
        worker.hear(message)


if __name__ == "__main__":
    main()
