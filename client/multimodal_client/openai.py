"""A model behind OpenAI's chat completions: the server is sent the file itself."""

from __future__ import annotations

import base64
import http.client
import io
import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import numpy as np
from PIL import Image, UnidentifiedImageError

from multimodal_api import wire
from multimodal_api.errors import ProductError
from multimodal_api.families import FAMILIES, Family, Modality
from multimodal_api.reasons import Reason
from multimodal_client import exchange, failures, media
from multimodal_client.address import OPENAI_PATH
from multimodal_recipes.videos import CONTAINERS
from multimodal_recipes.waves import Wave

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multimodal_client.address import Address
    from multimodal_client.question import Question

_PATH: Final = f"{OPENAI_PATH}/chat/completions"
_TYPES: Final = {"mp4": "video/mp4", "matroska": "video/x-matroska", "avi": "video/x-msvideo"}
_UNKNOWN: Final = "application/octet-stream"
_SEES_VIDEOS: Final = frozenset({Family.VIDEO_NEVA, Family.LITA, Family.VITA})


class OpenAiModel:
    """One model of one server."""

    def __init__(self, address: Address, name: str, timeout: float) -> None:
        """Name the model.

        Args:
            address: of the server.
            name: of the model.
            timeout: of one whole exchange, in seconds.
        """
        self._address = address
        self._name = name
        self._timeout = timeout

    def wait_ready(self, timeout: float) -> None:
        """Wait until the model is ready, `timeout` seconds at most."""
        path = f"{OPENAI_PATH}/models/{quote(self._name)}"
        exchange.wait_ready(self._address, path, self._name, timeout=timeout)

    def ask(self, question: Question) -> list[str]:
        """Give all answers."""
        body = json.dumps(self._body(question)).encode()
        answer = exchange.ask(self._address, _PATH, [body], exchange.JSON, timeout=self._timeout)
        if answer.status != http.client.OK:
            raise exchange.refused(self._address, answer.status, answer.body)
        return [str(choice["message"]["content"]) for choice in json.loads(answer.body)["choices"]]

    def stream(self, question: Question) -> Iterator[str]:
        """Give one answer as it comes."""
        body = self._body(question) | {"stream": True}
        for event in exchange.events(self._address, _PATH, body, timeout=self._timeout):
            if "error" in event:
                said = exchange.said(json.dumps(event).encode())
                raise failures.refused(self._address, said, code="in the stream", wrong=False)
            for choice in event["choices"]:
                yield choice["delta"].get("content") or ""

    def _body(self, question: Question) -> dict[str, Any]:
        """Make a request. What is left out has the defaults that it has over Triton.

        Raises:
            ProductError: the medium cannot be read, or the API has no such field.
        """
        _check_what_is_not_offered(question)
        content = [_part(question), {"type": "text", "text": question.text}]
        body = {
            "model": self._name,
            "messages": [{"role": "user", "content": content}],
            "n": question.batch_size,
            "max_completion_tokens": question.max_output_len or wire.DEFAULT_MAX_OUTPUT_LEN,
            "top_k": wire.DEFAULT_TOP_K if question.top_k is None else question.top_k,
            # Triton's 0 is no bound, OpenAI's is the tightest.
            "top_p": question.top_p or None,
            "temperature": question.temperature,
        }
        return {name: value for name, value in body.items() if value is not None}


def _check_what_is_not_offered(question: Question) -> None:
    for name, value, usual in (
        (wire.REPETITION_PENALTY.name, question.repetition_penalty, {None, wire.DEFAULT_REPETITION_PENALTY}),
        (wire.NUM_BEAMS.name, question.num_beams, {None, 1}),
        (wire.LORA_UIDS.name, None if question.lora_uids is None else tuple(question.lora_uids), {None, ("-1",)}),
    ):
        if value not in usual:
            raise _refused(
                name, f"is {value!r}, and OpenAI's API has no such field", "leave it out, or ask over Triton"
            )


def _part(question: Question) -> dict[str, Any]:
    """Make the part of a message that holds the medium."""
    if isinstance(question.medium, np.ndarray | Wave):
        raise _refused("input_media", "is an array, and OpenAI's API takes files", "give the file, or ask over Triton")
    data, _ = media.content(question.medium)
    encoded = base64.b64encode(data).decode()
    if FAMILIES[question.family].modality is Modality.AUDIO:
        return {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}
    kind = "video_url" if question.family in _SEES_VIDEOS else "image_url"
    return {"type": kind, kind: {"url": f"data:{_media_type(data)};base64,{encoded}"}}


def _media_type(data: bytes) -> str:
    """Tell what a picture's or video's content is called; the server looks at the content itself."""
    container = next((name for start, mark, name in CONTAINERS if data.startswith(mark, start)), None)
    if container is not None:
        return _TYPES[container]
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.get_format_mimetype() or _UNKNOWN
    except (UnidentifiedImageError, OSError, ValueError):
        return _UNKNOWN


def _refused(at: str, problem: str, remedy: str) -> ProductError:
    return ProductError(Reason.REQUEST_REFUSED, at=at, problem=problem, remedy=remedy)
