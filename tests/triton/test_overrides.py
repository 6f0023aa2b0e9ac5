"""A server whose deployment changes the recipe of its engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from multimodal_recipes.recipe import LLM_DIR
from multimodal_recipes.tokenizer import Tokenizer
from support.tiny_engine import TOKENS_PER_IMAGE
from tests.triton.conftest import Server, inline, picture, ready

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]

BEFORE = "Say little.\n"
OVERRIDES = {
    "prompt": {"template": {"before": BEFORE, "turn": "U: {text}\nA:", "medium": "{media}"}},
    "preprocessing": {"resize": "squash"},
}


async def ask(server: Server, *parts: dict[str, Any]) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 8}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.openai}/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200, await response.text()
        return await response.json()


async def test_prompt_and_pixels_are_those_of_the_deployment(start: Callable[..., Server], engine: Path) -> None:
    server = ready(start(engine, "--overrides", json.dumps(OVERRIDES)))
    tokenizer = Tokenizer(engine / "model" / LLM_DIR / "tokenizer.json", add_bos=False)
    words = {"type": "text", "text": "what?"}
    wide, square = picture(3, 20, 60), picture(3, 20, 60)[:, 20:40]
    shown = [{"type": "image_url", "image_url": {"url": inline(pixels)}} for pixels in (wide, square)]
    of_wide, of_square = [await ask(server, part, words) for part in shown]
    prompt = len(tokenizer.encode((f"{BEFORE}U: ",)).ids) + len(tokenizer.encode(("what?\nA:",)).ids)
    assert of_wide["usage"]["prompt_tokens"] == prompt + TOKENS_PER_IMAGE
    # What a crop would leave of the wide picture is the square one: squashed, they differ.
    assert of_wide["choices"] != of_square["choices"]
    assert server.client.query("what?", square, max_output_len=8)[0] == of_square["choices"][0]["message"]["content"]
