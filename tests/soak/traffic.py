"""What people send: questions over every port, requests that are given up, and requests that are wrong."""

from __future__ import annotations

import base64
import http.client
import json
import random
import select
import struct
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import Any, Final, NamedTuple

import numpy as np
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from multimodal_api import wire
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from support import asking, heldout
from support.asking import Call, NotAnsweredError, Question
from tests.triton.conftest import Server

MODEL: Final = "tiny"
ASKED: Final = 12
"""Questions of each family."""
GREEDY: Final = ("Triton HTTP", "gRPC", "gRPC stream", "OpenAI", "OpenAI stream")
"""The ways to ask; the answer is always the one of the quiet run."""
KEPT: Final = 0.5
"""Share of questions over connections that are kept."""
PATIENCE_SECONDS: Final = 0.3
"""Of those who go away."""
BUSY: Final = {"ServerBusy", "maximum queue size"}
"""Words of the two queues that may be full: the worker's and Triton's."""


class End(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    GIVEN_UP = "given up"
    """By the client, in the middle."""
    REFUSED = "refused"
    """With a declared error: it was wrong."""
    BUSY = "busy"
    """With a declared error: the queue was full."""
    FAILED = "failed"
    """Everything else, a wrong answer among it."""


class Served:
    """A family's server, what it is asked, and what it says when nobody else asks."""

    def __init__(self, family: Family, server: Server) -> None:
        self.family, self.server = family, server
        ports = [int(url.rpartition(":")[2]) for url in (server.http, server.grpc, server.openai)]
        self.at = asking.Server("127.0.0.1", MODEL, family, *ports)
        self.grpc = asking.grpc_client(self.at)
        self.questions = [Question(case.question, case.medium, case.kind) for case in heldout.cases(family)[:ASKED]]
        self.calls = {
            "Triton HTTP": [asking.triton_call(self.at, each) for each in self.questions],
            "OpenAI": [asking.openai_call(self.at, each) for each in self.questions],
            "OpenAI stream": [asking.openai_call(self.at, each, stream=True) for each in self.questions],
        }
        self.inputs = [
            asking.triton_inputs(tritonclient.grpc, asking.tensors(self.at, each)) for each in self.questions
        ]
        self.wrong = [*_wrong_chats(self), *_wrong_tensors(self)]
        self.quiet: dict[tuple[str, int], str] = {}

    def listen(self) -> None:
        """Take down what it says to one who is alone."""
        for way in GREEDY:
            for number in range(len(self.questions)):
                self.quiet[way, number] = self.ask(way, number, asking.connect)

    def ask(self, way: str, number: int, connect: Callable[[asking.Server, Call], http.client.HTTPConnection]) -> str:
        """Ask one question; `connect` gives a connection, which is left open."""
        if way == "gRPC":
            return asking.text_of(self.grpc.infer(MODEL, self.inputs[number], client_timeout=asking.SECONDS))
        if way == "gRPC stream":
            with asking.grpc_client(self.at) as client:
                return asking.in_pieces(client, self.at, self.questions[number])
        call = self.calls[way][number]
        return asking.send(connect(self.at, call), call)


class Wrong(NamedTuple):
    """A request that can never succeed."""

    name: str
    call: Call
    status: frozenset[int]


def _wrong_chats(served: Served) -> list[Wrong]:
    """Requests to the OpenAI port."""
    good = served.calls["OpenAI"][0]
    body = json.loads(good.body)
    text = {"type": "text", "text": "what?"}

    def chat(*parts: object, **fields: object) -> bytes:
        return json.dumps(body | {"messages": [{"role": "user", "content": [*parts, text]}]} | fields).encode()

    bodies = {
        "no JSON": good.body[: len(good.body) // 2],
        "a field of nobody": chat(unknown=1),
        "a temperature below 0": chat(temperature=-1),
        "a long answer": chat(max_tokens=10**6),
        "a long text": chat({"type": "text", "text": "what is it? " * 2000}),
        "no base64": chat({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}),
        "no picture": chat({"type": "image_url", "image_url": {"url": _data(b"no picture")}}),
        "a large picture": chat({"type": "image_url", "image_url": {"url": _data(_large_picture())}}),
        "no sound": chat({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}),
        "an address": chat({"type": "image_url", "image_url": {"url": "http://127.0.0.1/picture.png"}}),
        "many media": chat(*[asking.content(served.questions[0])] * 40),
    }
    wrong = [Wrong(name, replace(good, body=body), frozenset({400})) for name, body in bodies.items()]
    wrong.append(Wrong("another model", replace(good, body=chat(model="other")), frozenset({404})))
    wrong.append(Wrong("no such path", replace(good, path="/v1/embeddings"), frozenset({404})))
    return wrong


def _wrong_tensors(served: Served) -> list[Wrong]:
    """Requests to Triton's HTTP port."""
    good = asking.tensors(served.at, served.questions[0])
    changes: dict[str, dict[str, np.ndarray[Any, Any]]] = {
        "an empty text": {wire.INPUT_TEXT.name: np.array([[b""]], object)},
        "no UTF-8": {wire.INPUT_TEXT.name: np.array([[b"\xff"]], object)},
        "a long text": {wire.INPUT_TEXT.name: np.array([[b"what is it? " * 2000]], object)},
        "a long answer": {wire.MAX_OUTPUT_LEN.name: np.array([[10**6]])},
        "a length of another type": {wire.MAX_OUTPUT_LEN.name: np.array([[1.0]])},
        "beams": {wire.NUM_BEAMS.name: np.array([[4]])},
    }
    if served.family is Family.SALM:
        changes["a long sound"] = {
            wire.INPUT_SIGNAL.name: np.zeros((1, 2**21), np.float32),
            wire.INPUT_SIGNAL_LENGTH.name: np.array([[2**21]], np.int32),
        }
    elif served.family is Family.VILA:  # whose preprocessing takes any shape
        changes["two pictures"] = {wire.INPUT_MEDIA.name: np.zeros((1, 2, 48, 48, 3), np.uint8)}
    else:
        changes["a large picture"] = {wire.INPUT_MEDIA.name: np.zeros((1, 1, 2**21, 1, 3), np.uint8)}
    wrong = [
        Wrong(name, asking.tensor_call(served.at, good | change), frozenset({400})) for name, change in changes.items()
    ]
    call = served.calls["Triton HTTP"][0]
    wrong.append(Wrong("half a body", replace(call, body=call.body[: len(call.body) // 2]), frozenset({400})))
    wrong.append(Wrong("another model", replace(call, path="/v2/models/other/infer"), frozenset({400, 404})))
    return wrong


def _data(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _large_picture() -> bytes:
    """A small file that becomes 4 GiB of pixels."""
    edge = 2**16

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


class User(threading.Thread):
    """Sends one request after the other to one server until it is told to stop."""

    def __init__(self, served: Served, seed: int, note: Callable[[str, End, float, str], None]) -> None:
        """Prepare.

        Args:
            served: whom to ask.
            seed: of its choices.
            note: told of each request what it was, how it ended, its seconds, and what was said where it failed.
        """
        super().__init__(daemon=True)
        self._served, self._note = served, note
        self._chance = random.Random(seed)  # noqa: S311 -- no secrets
        self._kept: dict[int, http.client.HTTPConnection] = {}
        self.stop = threading.Event()

    def run(self) -> None:
        """Send."""
        doings, weights = zip(*DOINGS.items(), strict=True)
        while not self.stop.is_set():
            (do,) = self._chance.choices(doings, weights)
            begun = time.monotonic()
            try:
                name, end, said = do(self, self._served)
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is counted
                name, end, said = do.__name__, End.FAILED, f"{type(error).__name__}: {error}"
            self._note(f"{self._served.family}: {name}", end, time.monotonic() - begun, said)

    def ask(self, served: Served) -> tuple[str, End, str]:
        """A question, whose answer is known."""
        way = self._chance.choice(GREEDY)
        number = self._chance.randrange(len(served.questions))
        connect = self._keep if self._chance.random() < KEPT else self._once
        try:
            said = served.ask(way, number, connect)
        except NotAnsweredError as error:
            return way, End.BUSY if any(word in str(error) for word in BUSY) else End.FAILED, str(error)
        except InferenceServerException as error:
            return way, End.BUSY if any(word in str(error) for word in BUSY) else End.FAILED, str(error)
        right = said == served.quiet[way, number]
        return way, End.ANSWERED if right else End.FAILED, "" if right else f"{said!r} to question {number}"

    def give_up(self, served: Served) -> tuple[str, End, str]:
        """A question whose asker goes away: before the answer, or in the middle of it."""
        way = self._chance.choice(GREEDY)
        number = self._chance.randrange(len(served.questions))
        if way == "gRPC":
            call = served.grpc.async_infer(MODEL, served.inputs[number], lambda **_: None)
            time.sleep(self._chance.random() * PATIENCE_SECONDS)
            call.cancel()
            return way, End.GIVEN_UP, ""
        if way == "gRPC stream":
            with asking.grpc_client(served.at) as client:
                asking.in_pieces(client, served.at, served.questions[number], most=1)
            return way, End.GIVEN_UP, ""
        call = served.calls[way][number]
        connection = asking.connect(served.at, call)
        connection.request("POST", call.path, call.body, call.headers)
        if way == "OpenAI stream" and self._chance.random() < KEPT:
            connection.getresponse().read(1)
        else:
            time.sleep(self._chance.random() * PATIENCE_SECONDS)
        connection.close()
        return way, End.GIVEN_UP, ""

    def err(self, served: Served) -> tuple[str, End, str]:
        """A request that is wrong, and must be told so in the way of its port."""
        wrong = self._chance.choice(served.wrong)
        connection = asking.connect(served.at, wrong.call)
        try:
            said = asking.send(connection, wrong.call)
        except NotAnsweredError as error:
            if any(word in str(error) for word in BUSY):
                return wrong.name, End.BUSY, ""
            declared = error.status in wrong.status and is_declared(error.body)
            return wrong.name, End.REFUSED if declared else End.FAILED, str(error)
        finally:
            connection.close()
        return wrong.name, End.FAILED, f"answered with {said!r}"

    def _keep(self, server: asking.Server, call: Call) -> http.client.HTTPConnection:
        connection = self._kept.setdefault(call.port, asking.connect(server, call))
        if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
            connection.close()  # as any client does whose server has closed a connection that was idle
        return connection

    @staticmethod
    def _once(server: asking.Server, call: Call) -> http.client.HTTPConnection:
        return asking.connect(server, replace(call, headers=call.headers | {"Connection": "close"}))


DOINGS: Final = {User.ask: 80, User.give_up: 12, User.err: 8}


def is_declared(body: bytes) -> bool:
    """Whether an error is of the shape that its port documents: OpenAI's object, or KServe's text."""
    error = json.loads(body)["error"]
    if isinstance(error, str):
        return bool(error)
    return isinstance(error["message"], str) and (error["code"] in set(Reason) or error["code"] == "Not Found")
