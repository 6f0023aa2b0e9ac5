"""From a request's tensors to text, with a worker that answers by script."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from multimodal_api.engine import Manifest
from multimodal_api.errors import Failure, ProductError
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Done, FinishReason, Generate, Refused, Timing, Tokens
from multimodal_recipes.tokenizer import Tokenizer
from multimodal_server import whole
from multimodal_server.answers import Responder
from multimodal_server.engine import ServedEngine
from multimodal_server.metrics import Metrics
from multimodal_server.replies import Reply
from multimodal_server.worker_client import WorkerClient
from support.answering import Caller, answer
from support.tiny_engine import IMAGE_SIZE, RECIPE, TOKENS_PER_IMAGE, build_inputs
from support.tiny_tokenizer import write_tokenizer

DONE = Timing(queue=0, encode=0, generate=0)
FAILURE = Failure(reason=Reason.SERVER_BUSY, at="here", problem="no room", remedy="make room")


class Scripted:
    """Says one text, a token at a time, and remembers what it was asked."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self.ids = tokenizer.encode((text,)).ids
        self.requests: list[Generate] = []
        self._numbers = count(1)
        self.buffers: list[bytes] = []
        self.ended: dict[int, bool] = {}
        """Whether each request was cancelled."""
        self.error: Exception | None = None
        self.refused = 0
        """The number of a request that has no room."""
        self.gate = threading.Event()
        self.gate.set()
        self.threads: list[threading.Thread] = []

    def next_id(self) -> int:
        return next(self._numbers)

    def begin(self, request: Generate, buffers: Sequence[memoryview], tell: Callable[[Any], None]) -> None:
        self.requests.append(request)
        self.buffers.extend(bytes(buffer) for buffer in buffers)
        if self.error is not None:
            raise self.error
        saying = threading.Thread(target=self._say, args=(request, tell), name=f"worker {request.request_id}")
        self.threads.append(saying)
        saying.start()

    def _say(self, request: Generate, tell: Callable[[Any], None]) -> None:
        me = request.request_id
        self.gate.wait(10)
        if me == self.refused:
            tell(Refused(request_id=me, failure=FAILURE))
            return
        for given, token in enumerate(self.ids[: request.max_new_tokens]):
            tell(Tokens(request_id=me, token_ids=(token,), seconds=(0.5 + 0.25 * given,)))
        tell(Done(request_id=me, reason=FinishReason.LENGTH, timing=DONE))

    def say_at_once(self, request: Generate, tell: Callable[[Any], None]) -> None:
        me = request.request_id
        rest = Tokens(request_id=me, token_ids=self.ids)
        tell(Done(request_id=me, reason=FinishReason.LENGTH, timing=DONE, rest=rest))

    def end(self, request_id: int, *, cancel: bool) -> None:
        assert request_id not in self.ended
        self.ended[request_id] = cancel


@pytest.fixture
def engine(tmp_path: Path) -> ServedEngine:

    write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", add_bos=False)
    manifest = Manifest.model_construct(inputs=build_inputs())
    return ServedEngine(manifest, RECIPE, tokenizer, frozenset({2, 4}))


def answering(engine: ServedEngine, text: str) -> tuple[Responder, Scripted, Metrics]:
    worker, metrics = Scripted(engine.tokenizer, text), Metrics()
    return Responder(engine, cast("WorkerClient", worker), metrics), worker, metrics


def tensors(text: bytes = b"what?", **more: NDArray[Any]) -> dict[str, NDArray[Any]]:
    frames = np.full((1, 1, 40, 60, 3), 255, np.uint8)
    return {"input_text": np.array([[text]], dtype=object), "input_media": frames} | more


def number(value: float, kind: type = np.int64) -> NDArray[Any]:
    return np.array([[value]], dtype=kind)


def counted(metrics: Metrics, name: str, **labels: str) -> float:
    metrics.later.settle()
    return metrics.registry.get_sample_value(name, labels) or 0


def test_an_answer(engine: ServedEngine) -> None:
    responder, worker, metrics = answering(engine, " a red circle ")
    assert answer(responder, tensors()) == ["a red circle"]
    (request,) = worker.requests
    (medium,) = request.media
    assert medium.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert [span.length for span in medium.spans] == [TOKENS_PER_IMAGE]
    pixels = np.frombuffer(worker.buffers[0], np.float32).reshape(medium.shape)
    assert np.allclose(
        pixels[0, :, 0, 0],
        [
            (1 - mean) / std
            for mean, std in zip((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), strict=True)
        ],
        atol=1e-6,
    )
    assert request.stop_token_ids == {2, 4}
    assert counted(metrics, "multimodal_requests_total", outcome="Answered") == 1
    assert counted(metrics, "multimodal_prompt_tokens_total") == len(request.token_ids)
    assert counted(metrics, "multimodal_media_tokens_total") == TOKENS_PER_IMAGE
    assert counted(metrics, "multimodal_generated_tokens_total") == len(worker.ids)


def test_a_stop_string_ends_the_answer_and_the_work(engine: ServedEngine) -> None:
    responder, worker, _ = answering(engine, "a red circle STOP and much more that nobody asked for")
    assert answer(responder, tensors()) == ["a red circle"]
    assert worker.ended == {1: True}


def test_an_answer_comes_whole_where_no_text_can_end_it(engine: ServedEngine) -> None:
    responder, worker, _ = answering(engine, "a red circle")
    answer(responder, tensors())
    assert worker.requests[-1].stream
    with_tokens = replace(engine, recipe=RECIPE.model_copy(update={"stop_strings": ("<extra_id_1>",)}))
    responder, worker, _ = answering(with_tokens, "a red circle")
    assert answer(responder, tensors()) == ["a red circle"]
    assert not worker.requests[-1].stream


def test_moments_are_those_of_the_worker(engine: ServedEngine) -> None:
    responder, worker, metrics = answering(engine, "a red circle")
    answer(responder, tensors())
    assert counted(metrics, "multimodal_time_to_first_token_seconds_sum") == 0.5
    assert counted(metrics, "multimodal_inter_token_seconds_count") == len(worker.ids) - 1
    assert counted(metrics, "multimodal_inter_token_seconds_sum") == (len(worker.ids) - 1) * 0.25


def test_the_length_is_the_request_s(engine: ServedEngine) -> None:
    responder, worker, _ = answering(engine, "a very long answer indeed")
    answer(responder, tensors(max_output_len=number(3)))
    assert [request.max_new_tokens for request in worker.requests] == [3]


def test_greedy_copies_are_one_answer_asked_once(engine: ServedEngine) -> None:
    responder, worker, _ = answering(engine, "yes")
    assert answer(responder, tensors(batch_size=number(3))) == ["yes"] * 3
    assert len(worker.requests) == 1


def test_sampled_copies_are_asked_with_seeds_of_their_own(engine: ServedEngine) -> None:
    responder, worker, _ = answering(engine, "yes")
    sampled = tensors(batch_size=number(4), top_k=number(0), top_p=number(0.9, np.float32))
    assert answer(responder, sampled) == ["yes"] * 4
    assert len({request.sampling.seed for request in worker.requests}) == 4


def test_answers_are_given_by_the_thread_that_hears_the_last_of_them(engine: ServedEngine) -> None:
    responder, worker, _ = answering(engine, "yes")
    sampled = tensors(batch_size=number(4), top_k=number(0), top_p=number(0.9, np.float32))
    names: list[str] = []

    class Noting(Caller):
        def give(self, texts: list[str]) -> None:
            names.append(threading.current_thread().name)
            super().give(texts)

    caller = Noting()
    responder.answer(sampled, caller)
    assert set(names) < {f"worker {number}" for number in range(1, 5)}
    assert caller.given == [["yes"] * 4]
    assert worker.ended == dict.fromkeys(range(1, 5), False)


def test_a_worker_that_is_silent_is_cancelled_and_heard_no_more(
    engine: ServedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "TOKEN_SECONDS", 0.1)
    responder, worker, _ = answering(engine, "yes")
    worker.gate.clear()
    caller = Caller()
    with pytest.raises(ProductError) as caught:
        responder.answer(tensors(), caller)
    assert caught.value.failure.reason is Reason.DEADLINE_EXCEEDED
    assert worker.ended == {1: True}
    worker.gate.set()
    worker.threads[0].join(10)
    assert caller.given == []


def test_an_answer_that_is_given_while_the_time_runs_out_is_no_error(
    engine: ServedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "TOKEN_SECONDS", 0.1)
    with_tokens = replace(engine, recipe=RECIPE.model_copy(update={"stop_strings": ("<extra_id_1>",)}))
    responder, worker, _ = answering(with_tokens, "yes")
    monkeypatch.setattr(worker, "_say", worker.say_at_once)

    class Slow(Caller):
        def give(self, texts: list[str]) -> None:
            time.sleep(0.5)
            super().give(texts)

    caller = Slow()
    responder.answer(tensors(), caller)
    assert caller.given == [["yes"]]
    assert worker.ended == {1: False}


def test_one_answer_that_fails_is_the_end_of_them_all(engine: ServedEngine) -> None:
    responder, worker, metrics = answering(engine, "yes")
    worker.refused = 2
    sampled = tensors(batch_size=number(3), top_k=number(0), top_p=number(0.9, np.float32))
    caller = Caller()
    with pytest.raises(ProductError, match="no room"):
        responder.answer(sampled, caller)
    assert caller.given == []
    assert worker.ended.keys() == {1, 2, 3}
    assert worker.ended[2]
    assert counted(metrics, "multimodal_requests_total", outcome="ServerBusy") == 1


def test_whoever_goes_away_is_waited_for_no_longer(engine: ServedEngine) -> None:
    responder, worker, metrics = answering(engine, "yes")
    worker.gate.clear()
    sampled = tensors(batch_size=number(3), top_k=number(0), top_p=number(0.9, np.float32))

    class Leaving(Caller):
        def when_gone(self, tell: Callable[[], None]) -> None:
            threading.Timer(0.1, tell).start()

    caller = Leaving()
    responder.answer(sampled, caller)
    assert caller.given == []
    assert worker.ended == dict.fromkeys(range(1, 4), True)
    worker.gate.set()
    for thread in worker.threads:
        thread.join(10)
    assert caller.given == []
    assert counted(metrics, "multimodal_requests_total", outcome="Answered") == 1


def test_whoever_asked_keeps_no_pictures(engine: ServedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    responder, worker, _ = answering(engine, "yes")
    sent: list[weakref.ref[memoryview]] = []
    begin = worker.begin

    def noting(request: Generate, buffers: Sequence[memoryview], tell: Callable[[Any], None]) -> None:
        sent.extend(map(weakref.ref, buffers))
        begin(request, buffers, tell)

    monkeypatch.setattr(worker, "begin", noting)
    caller = Caller()
    responder.answer(tensors(), caller)
    assert len(caller.given) == len(sent) == 1
    assert sent[0]() is None


def test_a_request_for_which_there_is_no_place_is_refused_at_once(engine: ServedEngine) -> None:
    responder, worker, metrics = answering(engine, "yes")
    worker.gate.clear()
    with ThreadPoolExecutor(responder.most) as threads:
        asked = [threads.submit(answer, responder, tensors()) for _ in range(responder.most)]
        ends = time.monotonic() + 30
        while len(worker.threads) < responder.most:
            assert time.monotonic() < ends
            time.sleep(0.01)
        with pytest.raises(ProductError, match=rf"{responder.most} requests run or wait already; send .* again later"):
            answer(responder, tensors())
        worker.gate.set()
        assert all(each.result(30) == ["yes"] for each in asked)
    assert answer(responder, tensors()) == ["yes"]
    assert counted(metrics, "multimodal_requests_total", outcome="ServerBusy") == 1


def test_a_defect_behind_the_worker_s_words_is_the_request_s_alone(
    engine: ServedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    responder, worker, _ = answering(engine, "yes")
    with monkeypatch.context() as broken:
        broken.setattr(Reply, "feed", lambda *_: 1 / 0)
        with pytest.raises(ProductError) as caught:
            answer(responder, tensors())
    assert caught.value.failure.reason is Reason.INTERNAL
    assert worker.ended == {1: True}
    assert answer(responder, tensors()) == ["yes"]


def test_a_refusal_costs_the_worker_nothing(engine: ServedEngine) -> None:
    responder, worker, metrics = answering(engine, "yes")
    for bad in (tensors(b""), tensors(b"x y z " * 100), tensors(max_output_len=number(10**6))):
        with pytest.raises(ProductError):
            answer(responder, bad)
    assert worker.requests == []
    assert counted(metrics, "multimodal_requests_total", outcome="RequestRefused") == 3


def test_any_other_error_says_nothing_of_the_user(engine: ServedEngine, caplog: pytest.LogCaptureFixture) -> None:
    responder, worker, metrics = answering(engine, "yes")
    worker.error = KeyError("a defect")
    with pytest.raises(ProductError) as caught:
        answer(responder, tensors(b"private words"))
    assert caught.value.failure.reason is Reason.INTERNAL
    assert "private words" not in str(caught.value) + caplog.text
    assert counted(metrics, "multimodal_requests_total", outcome="Internal") == 1


def test_the_warm_up_is_a_real_question(engine: ServedEngine) -> None:
    responder, worker, metrics = answering(engine, "yes")
    responder.warm_up()
    (request,) = worker.requests
    assert request.media
    assert request.max_new_tokens == 2
    assert counted(metrics, "multimodal_requests_total", outcome="Answered") == 0


def test_a_prompt_of_the_deployment_s_own_that_has_no_room_is_told_as_such(engine: ServedEngine) -> None:
    template = RECIPE.template.model_copy(update={"default_text": "what? " * 4096})
    changed = replace(engine, recipe=RECIPE.model_copy(update={"template": template}))
    responder, worker, _ = answering(changed, "yes")
    with pytest.raises(ProductError, match=r"spec\.prompt") as refused:
        responder.warm_up()
    assert refused.value.failure.reason is Reason.LIMITS_TOO_SMALL
    assert "first question" in refused.value.failure.problem
    assert worker.requests == []
