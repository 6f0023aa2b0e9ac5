"""The OpenAI port of a real server: the same model, and the same answers, as over Triton."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.triton.conftest import Server, inline, picture

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]

QUESTION = "what?"


def body(seed: int, **fields: Any) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": inline(picture(seed))}}, {"type": "text", "text": QUESTION}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0} | fields


async def ask(server: Server, request: dict[str, Any]) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.openai}/v1/chat/completions", json=request) as response,
    ):
        assert response.status == 200, await response.text()
        if not request.get("stream"):
            return str((await response.json())["choices"][0]["message"]["content"])
        text = ""
        async for line in response.content:
            if line.startswith(b"data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"]["content"]
        return text


async def test_answers_are_those_over_triton_alone_and_among_others(server: Server) -> None:
    wanted = [server.client.query(QUESTION, picture(seed), max_output_len=12)[0] for seed in range(6)]
    requests = [body(seed, max_tokens=12, stream=seed % 2 == 0) for seed in range(6)]
    assert await asyncio.gather(*(ask(server, request) for request in requests)) == wanted
    assert len(set(wanted)) > 1


async def test_health_and_metrics(server: Server) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{server.openai}/health") as response:
            assert response.status == 200
        async with session.get(server.metrics) as response:
            page = await response.text()
    for series in ("kv_positions ", "kv_positions_used ", "inter_token_seconds_count"):
        assert f"multimodal_{series}" in page
