"""OpenAI's chat completions as this server speaks them: field names and shapes are that API's.

A field that is not here is refused by name: to leave one out silently would be another answer than the one asked for.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from multimodal_api.worker_protocol import MAX_PENALTY, MAX_TOP_LOGPROBS

MAX_STOPS: Final = 4
MAX_TEMPERATURE: Final = 2.0
COMPLETIONS_PATH: Final = "/v1/chat/completions"
MODELS_PATH: Final = "/v1/models"
DOCUMENT_PATH: Final = "/openapi.json"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class TextPart(_Model):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrl(_Model):
    """Where a picture is."""

    url: str
    """A data URI with base64 content, or an address that this server fetches from (`spec.openai.mediaDomains`)."""
    detail: Literal["auto", "low", "high"] = "auto"
    """Of no effect: every picture is seen as the model was trained to."""


class ImagePart(_Model):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(_Model):
    """Where a video is."""

    url: str
    """As of a picture."""


class VideoPart(_Model):
    """A video."""

    type: Literal["video_url"]
    video_url: VideoUrl


class InputAudio(_Model):
    """A recording."""

    data: str
    """Content of the file, as base64."""
    format: Literal["wav"]


class AudioPart(_Model):
    """A sound."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioUrl(_Model):
    """Where a sound is."""

    url: str
    """As of a picture."""


class AudioUrlPart(_Model):
    """A sound by its address."""

    type: Literal["audio_url"]
    audio_url: AudioUrl


Part = Annotated[TextPart | ImagePart | VideoPart | AudioPart | AudioUrlPart, Field(discriminator="type")]


class Message(_Model):
    """What one side said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]
    name: str | None = None
    """Of no effect."""


class StreamOptions(_Model):
    """Of a stream."""

    include_usage: bool = False
    """Whether a last chunk without choices carries the numbers of tokens."""


class ChatRequest(_Model):
    """Body of a request."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of an answer; the older name of the next."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of an answer; as many as the engine allows when left out."""
    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)] | None = None
    """1 when left out; 0 always takes the best token."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """1 when left out."""
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """No bound when left out, or 0. Not one of OpenAI's."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """The same seed gives the same answer."""
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    """Texts that end the answer, and are no part of it."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Answers wanted."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)] | None = None
    presence_penalty: Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)] | None = None
    user: str | None = None
    """Of no effect, and not logged."""


class TopLogprob(_Model):
    """A token that might have been chosen."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was chosen."""

    top_logprobs: list[TopLogprob]


class Logprobs(_Model):
    """What the model thinks of the tokens, before temperature, cuts and penalties."""

    content: list[TokenLogprob]


class Answer(_Model):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str


Finish = Literal["stop", "length"]


class Choice(_Model):
    """One answer."""

    index: int
    message: Answer
    finish_reason: Finish
    logprobs: Logprobs | None = None


class Usage(_Model):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(_Model):
    """All answers."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(_Model):
    """What is new."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(_Model):
    """What is new of one answer."""

    index: int
    delta: Delta
    finish_reason: Finish | None = None
    logprobs: Logprobs | None = None


class Chunk(_Model):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ErrorDetail(_Model):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorBody(_Model):
    """Body of every answer whose status is no success."""

    error: ErrorDetail


class ModelCard(_Model):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "multimodal-server"


class Models(_Model):
    """All models: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(_Model):
    """Requests are taken."""

    status: Literal["ok"] = "ok"


class Version(_Model):
    """Of this software."""

    version: str


ERRORS: Final = {
    400: "The request is wrong or beyond a limit: it will never succeed as it is.",
    404: "There is no such model, or no such path.",
    413: "The body is too large.",
    429: "Too many requests wait: send it again later.",
    500: "The server failed; its log says more.",
    503: "The server is stopping, or short of memory or time: send it again later.",
}


def openapi(version: str, model: str) -> dict[str, object]:
    """Describe the port as an OpenAPI document.

    Args:
        version: of this software.
        model: its name on the wire.
    """
    _, schemas = models_json_schema(
        [(each, "serialization") for each in (ChatRequest, Completion, Chunk, ErrorBody, Models, Health, Version)],
        ref_template="#/components/schemas/{model}",
    )
    name = {"type": "string", "enum": [model]}
    schemas["$defs"]["ChatRequest"]["properties"]["model"] |= name
    ask = {
        "requestBody": {"required": True, "content": _content(ChatRequest)},
        "responses": {
            "200": {
                "description": "The answers; as server-sent events of chunks where stream is true.",
                "content": _content(Completion) | {"text/event-stream": {"schema": _EVENT}},
            },
            **_errors(*ERRORS),
        },
    }
    named = {"name": "model", "in": "path", "required": True, "schema": name}
    any_object: dict[str, object] = {"application/json": {"schema": {"type": "object"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "multimodal-server", "version": version},
        "paths": {
            COMPLETIONS_PATH: {"post": ask},
            MODELS_PATH: {"get": _gives(_content(Models))},
            f"{MODELS_PATH}/{{model}}": {"get": {"parameters": [named]} | _gives(_content(ModelCard), 404)},
            "/health": {"get": _gives(_content(Health), 503)},
            "/version": {"get": _gives(_content(Version))},
            DOCUMENT_PATH: {"get": _gives(any_object)},
        },
        "components": {"schemas": schemas["$defs"]},
    }


def _gives(content: dict[str, object], *errors: int) -> dict[str, object]:
    return {"responses": {"200": {"description": "JSON.", "content": content}, **_errors(*errors)}}


def _errors(*codes: int) -> dict[str, object]:
    described: dict[str, dict[str, object]] = {
        str(code): {"description": ERRORS[code], "content": _content(ErrorBody)} for code in codes
    }
    if "429" in described:
        seconds = {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer", "minimum": 1}}
        described["429"]["headers"] = {"Retry-After": seconds}
    return dict(described)


def _content(model: type[_Model]) -> dict[str, object]:
    return {"application/json": {"schema": _reference(model)}}


def _reference(model: type[_Model]) -> dict[str, object]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


_DATA: Final = {
    "type": "string",
    "contentMediaType": "application/json",
    "contentSchema": {"anyOf": [_reference(Chunk), _reference(ErrorBody)]},
}
_EVENT: Final = {
    "type": "object",
    "description": "One event; the last one is [DONE], or an error.",
    "required": ["data"],
    "properties": {"data": {"anyOf": [_DATA, {"const": "[DONE]"}]}},
}
