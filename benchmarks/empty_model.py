"""PyTriton around a function that only sleeps, for `server.py`: what no server behind PyTriton can go below."""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from multimodal_api.wire import VISION_INPUTS
from multimodal_server.triton import Addresses, Triton

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from numpy.typing import NDArray

    from multimodal_server.calls import Answer
    from multimodal_server.whole import Caller


async def _nothing(_tensors: Mapping[str, NDArray[Any]]) -> AsyncGenerator[list[str], None]:
    yield ["nothing"]


def _sleep(seconds: float) -> Answer:
    def answer(_tensors: Mapping[str, NDArray[Any]], caller: Caller) -> None:
        time.sleep(seconds)
        caller.give(["nothing"])

    return answer


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-name", required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--metrics-port", type=int, required=True)
    parser.add_argument("--openai-port", help="not listened on")
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="that it sleeps")
    arguments = parser.parse_args()
    addresses = Addresses("127.0.0.1", arguments.http_port, arguments.grpc_port, arguments.metrics_port)
    triton = Triton(addresses, stop_seconds=0)
    signal.signal(signal.SIGTERM, lambda *_: (triton.discard(), os._exit(0)))
    triton.start()
    triton.open()
    triton.publish(
        arguments.model_name,
        1,
        _sleep(arguments.seconds),
        _nothing,
        inputs=VISION_INPUTS,
        threads=arguments.concurrency,
    )
    threading.Event().wait()


if __name__ == "__main__":
    main()
