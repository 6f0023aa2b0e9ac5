"""Clients that ask a question again and again, in every way there is, until a file says stop; then what happened.

It runs in a pod. Standard input is JSON as `asking` has it, with one question. The command ends when every client has
had an answer; the clients go on behind it, for the stream of `kubectl exec` breaks where a machine is busy. When `STOP`
is there they write to `ENDED`, by way, how many answers there were and what else came instead.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from multimodal_api import wire
from multimodal_api.families import Family
from support import asking

PAUSE_SECONDS: Final = 0.3
"""Enough to be asked all the time, little enough to leave the node to the pods that start."""
FOREVER: Final = float("inf")
STOP: Final = Path("/tmp/stop-asking")
ENDED: Final = Path("/tmp/asked.json")
LOG: Final = Path("/tmp/asking.log")
LONGEST_SECONDS: Final = 900.0
"""Clients that nobody stops end then."""


@dataclass
class Way:
    """One client.

    Attributes:
        connect: gives what asks once, over a connection that is closed at the end.
        seconds: how long a connection is kept.
        said: answers, each with how often it came.
        failures: everything else.
    """

    connect: Callable[[], Iterator[Callable[[], str]]]
    seconds: float
    said: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def run(self, begun: threading.Barrier, stop: threading.Event) -> None:
        """Ask until it is enough."""
        first = True
        while not stop.is_set():
            ends = time.monotonic() + self.seconds
            with contextmanager(self.connect)() as ask:
                while not stop.is_set():
                    self._once(ask)
                    if first:
                        begun.wait()
                        first = False
                    time.sleep(PAUSE_SECONDS)
                    if time.monotonic() >= ends:
                        break

    def _once(self, ask: Callable[[], str]) -> None:
        try:
            text = ask()
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is counted
            self.failures.append(f"{time.strftime('%X')} {type(error).__name__}: {error}"[:300])
        else:
            self.said[text] = self.said.get(text, 0) + 1


def ways(server: asking.Server, question: asking.Question) -> dict[str, Way]:
    """Every port, with connections for one question and with such as are kept."""

    def http(call: asking.Call) -> Callable[[], Iterator[Callable[[], str]]]:
        def connect() -> Iterator[Callable[[], str]]:
            with closing(asking.connect(server, call)) as connection:
                yield lambda: asking.send(connection, call)

        return connect

    def grpc(ask: Callable[..., str]) -> Callable[[], Iterator[Callable[[], str]]]:
        def connect() -> Iterator[Callable[[], str]]:
            with asking.grpc_client(server) as client:
                yield lambda: ask(client, server, question)

        return connect

    triton = http(asking.triton_call(server, question))
    whole = http(asking.openai_call(server, question))
    stream = http(asking.openai_call(server, question, stream=True))
    return {
        "Triton HTTP": Way(triton, 0),
        # Triton never says that a connection should end: a client must think of it.
        "Triton HTTP, kept": Way(triton, wire.GRPC_CONNECTION_SECONDS),
        "gRPC": Way(grpc(asking.over_grpc), 0),
        "gRPC, kept": Way(grpc(asking.over_grpc), FOREVER),
        "gRPC stream, kept": Way(grpc(asking.in_pieces), FOREVER),
        "OpenAI": Way(whole, 0),
        "OpenAI, kept": Way(whole, FOREVER),
        "OpenAI stream, kept": Way(stream, FOREVER),
    }


def go_on_behind() -> int:
    """Let this process end when a byte is written; go on in another one, with the descriptor that takes it."""
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        sys.exit(0 if os.read(read, 1) else f"the clients ended; see {LOG}")
    os.close(read)
    os.setsid()
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # kubectl waits for all who hold these
        os.dup2(log, stream.fileno())
    return write


def main() -> None:
    """Run in a pod."""
    told = json.loads(sys.stdin.readline())
    for left in (STOP, ENDED):
        left.unlink(missing_ok=True)
    begins = go_on_behind()
    question = asking.Question(told["text"], base64.b64decode(told["medium"]), told["kind"])
    clients = ways(asking.Server(told["host"], told["model"], Family(told["family"])), question)
    begun, stop = threading.Barrier(len(clients) + 1), threading.Event()
    threads = [threading.Thread(target=way.run, args=(begun, stop), daemon=True) for way in clients.values()]
    for thread in threads:
        thread.start()
    begun.wait()
    os.write(begins, b"+")
    ends = time.monotonic() + LONGEST_SECONDS
    while not STOP.exists() and time.monotonic() < ends:
        time.sleep(PAUSE_SECONDS)
    stop.set()
    for thread in threads:
        thread.join()
    whole = ENDED.with_suffix(".part")
    whole.write_text(json.dumps({name: {"said": way.said, "failures": way.failures} for name, way in clients.items()}))
    whole.rename(ENDED)


if __name__ == "__main__":
    main()
