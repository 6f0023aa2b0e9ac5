"""The official client of OpenAI's API against real servers; it checks every answer against its own types."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, DefaultAsyncHttpxClient, NotFoundError, OpenAI, RateLimitError

from multimodal_api.families import Family
from support import tiny_families, tiny_salm
from tests.triton.conftest import START_SECONDS, Server, inline, picture

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]

QUESTION = "what?"


def settings(server: Server) -> dict[str, Any]:
    return {
        "base_url": f"{server.openai}/v1",
        "api_key": "none",
        "max_retries": 0,
        "timeout": START_SECONDS,
        "_strict_response_validation": True,
    }


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(**settings(server)) as opened:
        yield opened


def said(*parts: Any) -> Any:
    return [{"role": "user", "content": [*parts]}]


TEXT: Any = said({"type": "text", "text": "tell me all"})


def asked(seed: int = 0) -> Any:
    return said({"type": "image_url", "image_url": {"url": inline(picture(seed))}}, {"type": "text", "text": QUESTION})


def whole(chunks: Any) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(NotFoundError):
        client.models.retrieve("other")


def test_a_picture_is_answered_as_over_triton(client: OpenAI, server: Server) -> None:
    wanted = server.client.query(QUESTION, picture(0), max_output_len=12)[0]
    completion = client.chat.completions.create(model="tiny", messages=asked(), temperature=0, max_tokens=12)
    (choice,) = completion.choices
    assert choice.message.content == wanted
    assert completion.usage is not None
    assert choice.finish_reason == ("length" if completion.usage.completion_tokens == 12 else "stop")


def test_a_stream_tells_the_same_with_its_usage(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": "tiny", "messages": asked(), "temperature": 0, "max_completion_tokens": 20}
    completion = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert whole(chunks) == completion.choices[0].message.content
    assert chunks[-1].usage == completion.usage
    assert len(chunks) > 4
    with client.chat.completions.stream(**fields) as events:
        for _ in events:
            pass
        assert events.current_completion_snapshot.choices[0].message.content == completion.choices[0].message.content


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_longest_answer(client: OpenAI, name: str) -> None:
    fields: Any = {name: 7}
    completion = client.chat.completions.create(model="tiny", messages=TEXT, seed=3, **fields)
    assert completion.usage is not None
    assert completion.usage.completion_tokens <= 7
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_seeds_repeat_answers_and_n_gives_others(client: OpenAI) -> None:
    def answers() -> list[str | None]:
        completion = client.chat.completions.create(
            model="tiny", messages=TEXT, n=2, seed=5, temperature=1.5, top_p=0.98, max_tokens=24
        )
        assert [choice.index for choice in completion.choices] == [0, 1]
        return [choice.message.content for choice in completion.choices]

    first = answers()
    assert answers() == first
    assert first[0] != first[1]


def test_log_probabilities(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model="tiny", messages=TEXT, temperature=0, logprobs=True, top_logprobs=3, max_tokens=8
    )
    scores = completion.choices[0].logprobs
    assert scores is not None
    assert scores.content is not None
    assert completion.usage is not None
    assert len(scores.content) == completion.usage.completion_tokens
    for token in scores.content:
        assert [each.logprob for each in token.top_logprobs] == sorted(
            (each.logprob for each in token.top_logprobs), reverse=True
        )
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)
        assert token.logprob <= 0


def greedy(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=TEXT, temperature=0, max_tokens=40, **fields).choices[
        0
    ]


def test_a_stop_ends_an_answer(client: OpenAI) -> None:
    free = greedy(client).message.content
    middle = len(free) // 2
    stop = free[middle : middle + 3]
    stopped = greedy(client, stop=["never said", stop])
    assert stopped.message.content == free[: free.index(stop)].rstrip()
    assert stopped.finish_reason == "stop"


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_penalties_are_heard(client: OpenAI, name: str) -> None:
    assert greedy(client, **{name: 2.0}).message.content != greedy(client).message.content


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"extra_body": {"beams": 2}}, "beams"),
        ({"max_tokens": 201}, "max_completion_tokens"),
        (
            {"messages": said({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}})},
            "messages[0].content[0].image_url.url",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_request_is_its_class_of_error(
    client: OpenAI, fields: dict[str, Any], param: str, *, stream: bool
) -> None:
    body: dict[str, Any] = {"model": "tiny", "messages": TEXT} | fields
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(**body, stream=stream)
    assert (refused.value.param, refused.value.code) == (param, "RequestRefused")


def test_another_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model="other", messages=TEXT)


def running(server: Server) -> int:
    with urllib.request.urlopen(server.metrics, timeout=30) as page:  # noqa: S310 -- our own
        found = re.findall(rb"^multimodal_(?:running|waiting)_requests (\d+)", page.read(), re.MULTILINE)
    assert len(found) == 2
    return sum(map(int, found))


async def until_quiet(server: Server) -> None:
    while await asyncio.to_thread(running, server):
        pass


async def test_leaving_ends_the_work(server: Server) -> None:
    async with AsyncOpenAI(**settings(server)) as client:
        stream = await client.chat.completions.create(model="tiny", messages=TEXT, max_tokens=200, stream=True)
        assert (await anext(aiter(stream))).choices[0].delta.role == "assistant"
        await stream.close()
        await until_quiet(server)
        asking = asyncio.create_task(client.chat.completions.create(model="tiny", messages=TEXT, max_tokens=200, n=2))
        while not await asyncio.to_thread(running, server):
            assert not asking.done()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until_quiet(server)


async def test_who_is_turned_away_comes_again_when_told(server: Server) -> None:
    """The queue is filled by requests that are cancelled when one of them was turned away."""
    refused: asyncio.Queue[Any] = asyncio.Queue()

    async def see(response: Any) -> None:
        if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            refused.put_nowait(response)

    hooked = DefaultAsyncHttpxClient(event_hooks={"response": [see]})
    async with AsyncOpenAI(**settings(server), http_client=hooked) as hasty:
        clients = (hasty, hasty.with_options(max_retries=9))
        many = [
            asyncio.create_task(
                clients[number % 2].chat.completions.with_raw_response.create(
                    model="tiny", messages=TEXT, max_tokens=200, extra_headers={"X-Number": str(number)}
                )
            )
            for number in range(150)
        ]
        turned_away: dict[int, Any] = {}
        while len(turned_away) < len(clients):
            response = await refused.get()
            number = int(response.request.headers["X-Number"])
            turned_away.setdefault(number % 2, many[number])
        for task in many:
            if task not in turned_away.values():
                task.cancel()
        with pytest.raises(RateLimitError) as told:
            await turned_away[0]
        assert (told.value.response.headers["Retry-After"], told.value.code) == ("1", "ServerBusy")
        assert (await turned_away[1]).retries_taken > 0
        await asyncio.gather(*many, return_exceptions=True)
    await until_quiet(server)


@pytest.fixture
def tiny(serve: Callable[[Iterable[Family]], list[Server]]) -> Callable[[Family], Server]:
    return lambda family: serve([family])[0]


def test_a_sound_is_answered(tiny: Callable[[Family], Server]) -> None:
    folder = tiny_salm.FOLDER / "heldout"
    case = json.loads((folder / "heldout.json").read_text())[0]
    data = base64.b64encode((folder / case["sound"]).read_bytes()).decode()
    sound = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    with OpenAI(**settings(tiny(Family.SALM))) as client:
        completion = client.chat.completions.create(
            model="tiny", messages=said(sound, {"type": "text", "text": case["question"]}), temperature=0
        )
    assert completion.choices[0].message.content == case["answer"]


def test_a_video_is_answered(tiny: Callable[[Family], Server]) -> None:
    folder = tiny_families.archive(Family.VIDEO_NEVA).parent / "heldout"
    case = json.loads((folder / "heldout.json").read_text())[0]
    url = f"data:video/mp4;base64,{base64.b64encode((folder / case['video']).read_bytes()).decode()}"
    video = {"type": "video_url", "video_url": {"url": url}}
    with OpenAI(**settings(tiny(Family.VIDEO_NEVA))) as client:
        completion = client.chat.completions.create(
            model="tiny", messages=said(video, {"type": "text", "text": case["question"]}), temperature=0
        )
    assert completion.choices[0].message.content == case["answer"]
