"""The OpenAI port over real HTTP, with a worker that answers by script."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from multimodal_api.engine import Manifest
from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Done, FinishReason, Generate, Refused, Timing, Tokens, TokenScore
from multimodal_recipes.recipe import FrameSampling, TimeTokens, VideoLayout, VideoRecipe
from multimodal_recipes.tokenizer import Tokenizer
from multimodal_server.answers import Responder
from multimodal_server.engine import ServedEngine
from multimodal_server.fetching import Fetcher, fetching
from multimodal_server.metrics import Metrics
from multimodal_server.openai import OpenAiPort
from multimodal_server.openai_schema import ChatRequest
from multimodal_server.triton import free_port
from multimodal_server.worker_client import WorkerClient
from support.clips import LOSSLESS, encode, noise
from support.tiny_engine import IMAGE_SIZE, RECIPE, TOKENS_PER_IMAGE, build_inputs
from support.tiny_tokenizer import write_tokenizer

TIMING = Timing(queue=0, encode=0, generate=0)


class Scripted:
    """Says one text, a token at a time."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self.ids = tokenizer.encode((text,)).ids
        self.requests: list[Generate] = []
        self.buffers: list[bytes] = []
        self.cancelled: list[int] = []
        self.refusal: Failure | None = None
        self.asked = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def next_id(self) -> int:
        return len(self.requests) + 1

    def begin(self, request: Generate, buffers: Sequence[memoryview], tell: Callable[[Any], None]) -> None:
        self.requests.append(request)
        self.asked.set()
        self.buffers.extend(bytes(buffer) for buffer in buffers)
        threading.Thread(target=self._say, args=(request, tell), daemon=True).start()

    def _say(self, request: Generate, tell: Callable[[Any], None]) -> None:
        me = request.request_id
        if self.refusal is not None:
            tell(Refused(request_id=me, failure=self.refusal))
            return
        for number, token in enumerate(self.ids[: request.max_new_tokens]):
            if number == 2:
                self.gate.wait(10)
            scores = () if request.top_logprobs is None else (TokenScore(logprob=-0.5, top=((token, -0.5),)),)
            tell(Tokens(request_id=me, token_ids=(token,), scores=scores))
        tell(Done(request_id=me, reason=FinishReason.LENGTH, timing=TIMING))

    def end(self, request_id: int, *, cancel: bool) -> None:
        if cancel:
            self.cancelled.append(request_id)


class Port:
    """A client of one port."""

    def __init__(self, port: OpenAiPort, worker: Scripted, session: aiohttp.ClientSession, url: str) -> None:
        self.port, self.worker, self.session, self.url = port, worker, session, url

    async def ask(self, **fields: Any) -> tuple[int, Any]:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "what?"}], "temperature": 0} | fields
        async with self.session.post(f"{self.url}/v1/chat/completions", json=body) as response:
            return response.status, await response.json()

    async def stream(self, **fields: Any) -> list[Any]:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "what?"}], "temperature": 0, "stream": True}
        async with self.session.post(f"{self.url}/v1/chat/completions", json=body | fields) as response:
            assert response.content_type == "text/event-stream"
            lines = [line async for line in response.content]
        events = [line.removeprefix(b"data: ").strip() for line in lines if line.strip()]
        assert events.pop() == b"[DONE]"
        return [json.loads(event) for event in events]


@pytest.fixture
def engine(tmp_path: Path) -> ServedEngine:
    write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", add_bos=False)
    manifest = Manifest.model_construct(inputs=build_inputs())
    return ServedEngine(manifest, RECIPE, tokenizer, frozenset({2, 4}))


@asynccontextmanager
async def serving(
    engine: ServedEngine, answer: str, fetcher: AbstractAsyncContextManager[Fetcher] | None = None
) -> AsyncIterator[Port]:
    worker, number = Scripted(engine.tokenizer, answer), free_port()
    responder = Responder(engine, cast("WorkerClient", worker), Metrics())
    opened = OpenAiPort(
        responder, model="tiny", version="1.2", address="127.0.0.1", port=number, fetcher=fetcher or fetching(())
    )
    opened.start()
    async with aiohttp.ClientSession() as session:
        yield Port(opened, worker, session, f"http://127.0.0.1:{number}")
    await asyncio.to_thread(opened.stop, 1)


@pytest.fixture
async def port(engine: ServedEngine) -> AsyncIterator[Port]:
    async with serving(engine, " a red circle ") as opened:
        yield opened


@pytest.fixture
def watching(engine: ServedEngine) -> ServedEngine:
    """Of a model that says when."""
    video = VideoRecipe(num_frames=2, sampling=FrameSampling.ROUNDED, layout=VideoLayout.FRAMES)
    vision = RECIPE.seeing().model_copy(update={"video": video})
    return replace(engine, recipe=RECIPE.model_copy(update={"vision": vision, "time_tokens": TimeTokens(count=100)}))


def picture(kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), 255, np.uint8)).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def user(*parts: Any) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": part[5:]}
            if part.startswith("text:")
            else {"type": "image_url", "image_url": {"url": part}}
            for part in parts
        ],
    }


async def test_what_was_refused_does_not_wait_for_the_collector(port: Port) -> None:
    gc.collect()
    gc.disable()
    try:
        status, _ = await port.ask(messages=[user(picture(), "text:" + "what is it? " * 1000)])
        assert status == 400
        for _ in range(1000):  # the port's own thread may hold it a moment longer
            if not any(isinstance(each, ChatRequest) for each in gc.get_objects()):
                return
            await asyncio.sleep(0.01)
        pytest.fail("it is still there")
    finally:
        gc.enable()


async def test_a_question_about_a_picture(port: Port, engine: ServedEngine) -> None:
    status, body = await port.ask(messages=[user(picture(), "text:what is it?")], max_tokens=40)
    assert status == 200
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "a red circle"}
    assert choice["finish_reason"] == "length"
    (request,) = port.worker.requests
    assert request.media[0].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert request.sampling.greedy
    assert request.max_new_tokens == 40
    assert body["usage"] == {
        "prompt_tokens": len(request.token_ids),
        "completion_tokens": len(port.worker.ids),
        "total_tokens": len(request.token_ids) + len(port.worker.ids),
    }
    assert "what is it?" in engine.tokenizer.decode(
        request.token_ids[request.media[0].spans[0].start + TOKENS_PER_IMAGE :]
    )
    assert port.worker.cancelled == []


async def test_a_conversation(port: Port, engine: ServedEngine) -> None:
    said = [
        {"role": "system", "content": "be short"},
        user("text:one"),
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    assert (await port.ask(messages=said))[0] == 200
    text = engine.tokenizer.decode(port.worker.requests[0].token_ids)
    assert [text.index(word) for word in ("be short", "one", "two", "three")] == sorted(
        text.index(word) for word in ("be short", "one", "two", "three")
    )


async def test_a_stream(port: Port) -> None:
    events = await port.stream(stream_options={"include_usage": True})
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"]["content"] for event in events for choice in event["choices"]) == "a red circle"
    assert [choice.get("finish_reason") for event in events for choice in event["choices"]][-1] == "length"
    assert len({event["id"] for event in events}) == 1
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == len(port.worker.ids)


async def test_the_worker_streams_for_those_who_read_as_it_comes(engine: ServedEngine) -> None:
    bare = replace(engine, recipe=RECIPE.model_copy(update={"stop_strings": ()}))
    async with serving(bare, " a red circle ") as port:
        await port.ask()
        await port.stream()
        await port.ask(stop="circle")
        assert [request.stream for request in port.worker.requests] == [False, True, True]


class Pictures:
    """A host of pictures; one of them never comes."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.begun, self.left = asyncio.Event(), asyncio.Event()

    async def give(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        self.begun.set()
        if request.path == "/never.png":
            try:
                await asyncio.sleep(60)
            finally:
                self.left.set()
        return web.Response(body=base64.b64decode(picture().partition(",")[2]))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes([web.get("/{name}", self.give)])
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://localhost:{runner.addresses[0][1]}"
        await runner.cleanup()


async def test_a_picture_by_its_address(engine: ServedEngine) -> None:
    pictures = Pictures()
    async with pictures.open() as host:
        fetcher = fetching([host], allowed=lambda address: address.is_loopback)
        async with serving(engine, "a red circle", fetcher) as port:
            said = [user(f"{host}/a.png", f"{host}/a.png", "text:what?")]
            assert (await port.ask(messages=said))[0] == 200
            assert (await port.ask(messages=[user(picture(), picture(), "text:what?")]))[0] == 200
            sound = {"type": "audio_url", "audio_url": {"url": f"{host}/a.wav"}}
            status, body = await port.ask(messages=[{"role": "user", "content": [sound]}])
            assert (status, body["error"]["param"]) == (400, "messages[0].content[0]")
        assert port.worker.buffers[0] == port.worker.buffers[2]
    assert pictures.asked == ["/a.png"], "once for both places, and nothing that the model does not take"


async def test_a_client_that_goes_away_ends_the_fetching(engine: ServedEngine) -> None:
    pictures = Pictures()
    async with pictures.open() as host:
        fetcher = fetching([host], allowed=lambda address: address.is_loopback)
        async with serving(engine, "a red circle", fetcher) as port:
            asking = asyncio.create_task(port.ask(messages=[user(f"{host}/never.png", "text:what?")]))
            await pictures.begun.wait()
            asking.cancel()
            await asyncio.wait_for(pictures.left.wait(), 10)
            assert port.worker.requests == []


def clip() -> dict[str, Any]:
    """Of 1.2 seconds."""
    data = base64.b64encode(encode(noise(12), LOSSLESS["mp4"])).decode()
    return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}


def whole(events: list[Any]) -> str:
    return "".join(choice["delta"]["content"] for event in events for choice in event["choices"])


async def test_a_model_of_videos_is_asked_and_answers_in_seconds(watching: ServedEngine) -> None:
    said = [
        {"role": "user", "content": [clip(), {"type": "text", "text": "what is at <0.4>?"}]},
        {"role": "assistant", "content": "red until <1.20>"},
        {"role": "user", "content": "and from <0.8> on?"},
    ]
    async with serving(watching, " from <t33> to <t99> <b>blue</b> <t1 ") as port:
        _, body = await port.ask(messages=said, logprobs=True)
        events = await port.stream(messages=said)
        assert body["choices"][0]["message"]["content"] == "from <0.40> to <1.20> <b>blue</b> <t1"
        assert "<t33>" in "".join(token["token"] for token in body["choices"][0]["logprobs"]["content"])
        assert whole(events) == "from <0.40> to <1.20> <b>blue</b> <t1"
        assert len(events) > 5
        request = port.worker.requests[0]
    assert request.media[0].shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)
    text = watching.tokenizer.decode(request.token_ids[request.media[0].spans[-1].start + 2 * TOKENS_PER_IMAGE :])
    words = ["what is at <t33>?", "red until <t99>", "and from <t66> on?"]
    assert all(word in text for word in words)
    assert "<0" not in text


async def test_moments_stay_tokens_where_no_length_is_known(watching: ServedEngine) -> None:
    async with serving(watching, "from <t33>") as port:
        _, body = await port.ask(messages=[user(picture(), "text:what is at <0.4>?")])
        assert body["choices"][0]["message"]["content"] == "from <t33>"
        assert "what is at <0.4>?" in watching.tokenizer.decode(port.worker.requests[0].token_ids)


async def test_a_stop_behind_a_moment_leaves_the_moment(watching: ServedEngine) -> None:
    said = [{"role": "user", "content": [clip(), {"type": "text", "text": "when?"}]}]
    async with serving(watching, "at <t33>, then <t66>") as port:
        for stop, told in ((", then", "at <0.40>"), ("6>", "at <0.40>, then <t6"), ("t66", "at <0.40>, then <")):
            assert whole(await port.stream(messages=said, stop=stop)) == told
            assert (await port.ask(messages=said, stop=stop))[1]["choices"][0]["message"]["content"] == told


async def test_a_client_that_goes_away_ends_the_work(port: Port) -> None:
    port.worker.gate.clear()
    asking = asyncio.create_task(port.ask())
    await asyncio.to_thread(port.worker.asked.wait, 10)
    asking.cancel()
    for _ in range(200):
        if port.worker.cancelled:
            break
        await asyncio.sleep(0.02)
    assert port.worker.cancelled == [1]


@pytest.mark.parametrize("stream", [False, True])
async def test_several_answers_have_seeds_of_their_own(port: Port, *, stream: bool) -> None:
    fields: dict[str, Any] = {"n": 3, "temperature": 1, "seed": 7}
    if stream:
        texts = ["", "", ""]
        for event in await port.stream(**fields):
            for choice in event["choices"]:
                texts[choice["index"]] += choice["delta"]["content"]
    else:
        _, body = await port.ask(**fields)
        texts = [choice["message"]["content"] for choice in body["choices"]]
    assert texts == ["a red circle"] * 3
    assert sorted(request.sampling.seed for request in port.worker.requests) == [7, 8, 9]


async def test_greedy_answers_are_computed_once(port: Port) -> None:
    _, body = await port.ask(n=4)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert len(port.worker.requests) == 1


async def test_parameters_reach_the_worker(port: Port) -> None:
    await port.ask(
        temperature=0.5, top_p=0.25, top_k=9, seed=3, frequency_penalty=1.5, presence_penalty=-1, logprobs=True
    )
    request = port.worker.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.25, 9, 3)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (1.5, -1)
    assert request.top_logprobs == 0
    await port.ask(temperature=None)
    free = port.worker.requests[1].sampling
    assert (free.temperature, free.top_p, free.top_k, free.greedy) == (1, 1, 0, False)


async def test_log_probabilities(port: Port, engine: ServedEngine) -> None:
    _, body = await port.ask(logprobs=True, top_logprobs=1)
    content = body["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == [engine.tokenizer.token_text(token) for token in port.worker.ids]
    assert {entry["logprob"] for entry in content} == {-0.5}
    assert content[0]["top_logprobs"][0]["token"] == content[0]["token"]
    assert bytes(content[0]["bytes"]).decode() == content[0]["token"]


async def test_a_stop_ends_the_answer_and_the_work(port: Port) -> None:
    _, body = await port.ask(stop=["circle", "x"])
    assert body["choices"][0]["message"]["content"] == "a red"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert port.worker.cancelled == [1]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages[0]", "answer to nothing"),
        ({"messages": [user("text:a"), user("text:b")]}, "messages[1]", "second user message"),
        ({"messages": [user("text:a"), {"role": "assistant", "content": "b"}]}, "messages[1]", "not the user's"),
        ({"messages": [user("text: ")]}, "messages[0]", "empty"),
        ({"messages": [{"role": "user", "content": [clip()]}]}, "messages[0].content[0]", "this model takes pictures"),
        ({"messages": [user("https://example.org/a.png")]}, "messages[0].content[0].image_url.url", "does not fetch"),
        ({"messages": [user("data:image/png;base64,*")]}, "messages[0].content[0].image_url.url", "not valid base64"),
        ({"messages": [user("data:image/png;base64,aGk=")]}, "messages[0].content[0].image_url.url", "no picture"),
        ({"messages": [user("text:" + "x " * 500)]}, "messages", "maxInputLen"),
        ({"max_tokens": 1000}, "max_completion_tokens", "maxOutputLen is 64"),
        ({"n": 100}, "n", "maxBatchSize is 4"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"top_logprobs": 3}, "top_logprobs", "without logprobs"),
        ({"tools": []}, "tools", "not permitted"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_name_the_field(
    port: Port, fields: dict[str, Any], param: str, words: str, *, stream: bool
) -> None:
    status, body = await port.ask(stream=stream, **fields)
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["param"] == param
    assert words in body["error"]["message"]
    assert port.worker.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_says_when_to_come_again(port: Port, *, stream: bool) -> None:
    port.worker.refusal = Failure(reason=Reason.SERVER_BUSY, at="queue", problem="full", remedy="later")
    body = {"model": "tiny", "messages": [user("text:x")], "stream": stream}
    async with port.session.post(f"{port.url}/v1/chat/completions", json=body) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "1"
        assert (await response.json())["error"]["code"] == "ServerBusy"


async def test_what_else_is_there(port: Port) -> None:
    async def get(path: str) -> tuple[int, Any]:
        async with port.session.get(port.url + path) as response:
            return response.status, await response.json()

    assert (await get("/v1/models"))[1]["data"][0]["id"] == "tiny"
    assert (await get("/v1/models/tiny"))[0] == 200
    assert (await get("/v1/models/other"))[0] == 404
    assert await get("/health") == (200, {"status": "ok"})
    assert await get("/version") == (200, {"version": "1.2"})
    document = (await get("/openapi.json"))[1]
    described = {"/v1/chat/completions", "/v1/models", "/v1/models/{model}", "/health", "/version", "/openapi.json"}
    assert set(document["paths"]) == described
    schemas = document["components"]["schemas"]
    parts = schemas["Message"]["properties"]["content"]["anyOf"][1]["items"]["discriminator"]["mapping"]
    assert set(parts) == {"text", "image_url", "video_url", "input_audio", "audio_url"}
    assert schemas["VideoPart"]["properties"]["video_url"] == {"$ref": "#/components/schemas/VideoUrl"}
    status, body = await get("/nothing")
    assert (status, body["error"]["type"]) == (404, "invalid_request_error")
    status, body = await port.ask(model="other")
    assert (status, body["error"]["code"]) == (404, "Not Found")


async def test_a_port_that_leaves_answers_and_has_its_clients_connect_elsewhere(port: Port) -> None:
    async with port.session.get(f"{port.url}/health") as response:
        assert (response.status, response.headers.get("Connection")) == (200, None)
    port.port.leave()
    async with port.session.get(f"{port.url}/health") as response:
        assert response.status == 503
    assert (await port.ask())[0] == 200
    body = {"model": "tiny", "messages": [{"role": "user", "content": "what?"}]}
    for stream in (False, True):
        async with port.session.post(f"{port.url}/v1/chat/completions", json=body | {"stream": stream}) as response:
            assert (response.status, response.headers["Connection"]) == (200, "close")
            assert (await response.read()).endswith(b"}" if not stream else b"[DONE]\n\n")


async def test_stopping_lets_the_running_end_and_takes_no_more(port: Port) -> None:
    port.worker.gate.clear()
    asking = asyncio.create_task(port.ask())
    await asyncio.to_thread(port.worker.asked.wait, 10)
    stopping = asyncio.create_task(asyncio.to_thread(port.port.stop, 10))
    await asyncio.sleep(0.1)
    assert (await port.ask())[0] == 503
    port.worker.gate.set()
    assert (await asking)[0] == 200
    await stopping
