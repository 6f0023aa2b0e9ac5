"""Answers in pieces for Triton, and their end when nobody reads them, with parts of Triton that are played."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from multimodal_api.engine import Manifest
from multimodal_api.errors import Failure, ProductError
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Done, FinishReason, Generate, Refused, Timing, Tokens
from multimodal_recipes.tokenizer import Tokenizer
from multimodal_server.answers import Responder
from multimodal_server.engine import ServedEngine
from multimodal_server.gone import Gone
from multimodal_server.metrics import Metrics
from multimodal_server.triton_stream import FINAL, NUMBER, SOCKET, Watch
from multimodal_server.worker_client import WorkerClient
from support.tiny_engine import RECIPE, build_inputs
from support.tiny_tokenizer import write_tokenizer

TIMING = Timing(queue=0, encode=0, generate=0)
SAMPLED = {"top_k": np.array([[0]]), "top_p": np.array([[0.9]], np.float32)}


class Scripted:
    """Says one text, a token at a time; stops in the middle until the gate is opened."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self.ids = tokenizer.encode((text,)).ids
        self.seeds: list[int] = []
        self.cancelled: list[int] = []
        self.refusal: Failure | None = None
        self.gate = threading.Event()
        self._numbers = itertools.count(1)

    def next_id(self) -> int:
        return next(self._numbers)

    def begin(self, request: Generate, buffers: Sequence[memoryview], tell: Callable[[Any], None]) -> None:
        assert len(buffers) == 1
        self.seeds.append(request.sampling.seed)
        threading.Thread(target=self._say, args=(request.request_id, tell), daemon=True).start()

    def _say(self, me: int, tell: Callable[[Any], None]) -> None:
        if self.refusal is not None:
            tell(Refused(request_id=me, failure=self.refusal))
            return
        for number, token in enumerate(self.ids):
            if number == len(self.ids) // 2:
                self.gate.wait(10)
            tell(Tokens(request_id=me, token_ids=(token,)))
        tell(Done(request_id=me, reason=FinishReason.LENGTH, timing=TIMING))

    def end(self, request_id: int, *, cancel: bool) -> None:
        if cancel:
            self.cancelled.append(request_id)


@pytest.fixture
def engine(tmp_path: Path) -> ServedEngine:
    write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", add_bos=False)
    manifest = Manifest.model_construct(inputs=build_inputs())
    return ServedEngine(manifest, RECIPE, tokenizer, frozenset({2, 4}))


def answering(engine: ServedEngine, text: str) -> tuple[Responder, Scripted]:
    worker = Scripted(engine.tokenizer, text)
    return Responder(engine, cast("WorkerClient", worker), Metrics()), worker


def tensors(text: bytes = b"what?", **more: Any) -> dict[str, Any]:
    frames = np.full((1, 1, 40, 60, 3), 255, np.uint8)
    return {"input_text": np.array([[text]], dtype=object), "input_media": frames} | more


async def pieces(responder: Responder, **asked: Any) -> list[list[str]]:
    async with aclosing(responder.answer_in_pieces(tensors(**asked))) as given:
        return [each async for each in given]


async def test_pieces_come_before_the_end_and_join_to_the_answer(engine: ServedEngine) -> None:
    responder, worker = answering(engine, " a red circle ")
    async with aclosing(responder.answer_in_pieces(tensors())) as given:
        first = await anext(given)
        assert first != ["a red circle"]
        worker.gate.set()
        rest = [each async for each in given]
    assert rest
    assert "".join(text for (text,) in [first, *rest]) == "a red circle"
    assert worker.cancelled == []


async def test_a_stop_string_is_never_given_and_frees_the_place(engine: ServedEngine) -> None:
    responder, worker = answering(engine, "a red circle STOP and much more that nobody asked for")
    worker.gate.set()
    assert "".join(text for (text,) in await pieces(responder)) == "a red circle"
    assert worker.cancelled == [1]


async def test_copies_are_rows_that_join_to_their_answers(engine: ServedEngine) -> None:
    responder, worker = answering(engine, "a red circle")
    worker.gate.set()
    for sampling, computed in ({}, 1), (SAMPLED, 3):
        worker.seeds.clear()
        given = await pieces(responder, batch_size=np.array([[3]]), **sampling)
        assert {len(each) for each in given} == {3}
        assert ["".join(row) for row in zip(*given, strict=True)] == ["a red circle"] * 3
        assert len(set(worker.seeds)) == computed


async def test_an_answer_without_words_is_one_empty_piece(engine: ServedEngine) -> None:
    responder, worker = answering(engine, "STOP")
    worker.gate.set()
    assert await pieces(responder, batch_size=np.array([[2]])) == [["", ""]]


async def test_what_is_refused_gives_no_piece(engine: ServedEngine) -> None:
    responder, worker = answering(engine, "a red circle")
    with pytest.raises(ProductError, match="input_text: is empty"):
        await pieces(responder, text=b" ")
    assert worker.seeds == []
    worker.refusal = Failure(reason=Reason.SERVER_BUSY, at="queue", problem="full", remedy="later")
    with pytest.raises(ProductError) as caught:
        await pieces(responder)
    assert caught.value.failure == worker.refusal


class Response:
    def __init__(self, error: str | None = None) -> None:
        self.error = error

    def has_error(self) -> bool:
        return self.error is not None


class Sender:
    """Triton's side of one request's responses."""

    def __init__(self) -> None:
        self.sent: list[tuple[Response | None, int]] = []
        self.cancelled = False
        self.asked = threading.Event()

    def send(self, response: Response | None = None, flags: int = 0) -> None:
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        assert (None, FINAL) not in self.sent, "Triton has forgotten this request"
        self.asked.set()
        return self.cancelled


class Request:
    def __init__(self, **parameters: Any) -> None:
        self.sender = Sender()
        self._parameters = json.dumps(parameters)

    def get_response_sender(self) -> Sender:
        return self.sender

    def parameters(self) -> str:
        return self._parameters

    def inputs(self) -> list[str]:
        return ["a tensor"]


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path, lambda wrong: Response(f"right: {wrong.error}"))


def test_a_request_keeps_what_the_client_said_and_has_a_number(watch: Watch) -> None:
    one, two = (watch.take(Request(mine=1, **{NUMBER: -1})) for _ in range(2))
    assert json.loads(one.parameters()) == {"mine": 1, NUMBER: one.number}
    assert one.number != two.number
    assert one.inputs() == ["a tensor"]


def test_an_error_is_put_right_and_the_end_is_the_last_thing_asked_of_triton(watch: Watch) -> None:
    request = Request()
    watched = watch.take(request)
    watch.add(watched)
    sender = watched.get_response_sender()
    piece = Response()
    sender.send(piece, 0)
    sender.send(Response("wrong"), 0)
    assert request.sender.asked.wait(10)
    sender.send(None, FINAL)
    assert not watched.gone()
    assert request.sender.sent[0] == (piece, 0)
    assert request.sender.sent[1][0].error == "right: wrong"  # type: ignore[union-attr]
    assert request.sender.sent[2] == (None, FINAL)


@pytest.fixture
def gone(tmp_path: Path) -> Iterator[Gone]:
    listening = Gone(tmp_path / SOCKET)
    yield listening
    assert listening._tasks == {}


async def test_a_client_that_goes_away_ends_its_stream_and_no_other(
    engine: ServedEngine, watch: Watch, gone: Gone
) -> None:
    responder, worker = answering(engine, "a red circle")
    requests = [Request(), Request()]
    said: list[list[str]] = [[], []]
    begun = [asyncio.Event(), asyncio.Event()]

    async def front(number: int) -> str:
        """What PyTriton and `triton.py` do with a request."""
        watched = watch.take(requests[number])
        watch.add(watched)
        with gone.cancels(json.loads(watched.parameters())[NUMBER]):
            async with aclosing(responder.answer_in_pieces(tensors())) as given:
                async for texts in given:
                    said[number] += texts
                    begun[number].set()
        watched.get_response_sender().send(None, FINAL)
        return "".join(said[number])

    tasks = [asyncio.create_task(front(number)) for number in range(2)]
    await asyncio.wait_for(asyncio.gather(*(each.wait() for each in begun)), 10)
    requests[0].sender.cancelled = True
    left = await asyncio.wait_for(tasks[0], 10)
    assert "a red circle".startswith(left)
    assert left != "a red circle"
    assert len(worker.cancelled) == 1
    worker.gate.set()
    assert await asyncio.wait_for(tasks[1], 10) == "a red circle"
