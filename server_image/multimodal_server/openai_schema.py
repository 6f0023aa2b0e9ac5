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


ERRORS: Final = {
    400: "The request is wrong or beyond a limit: it will never succeed as it is.",
    404: "There is no such model, or no such path.",
    413: "The body is too large.",
    429: "Too many requests wait: send it again later.",
    500: "The server failed; its log says more.",
    503: "The server is stopping, or short of memory or time: send it again later.",
}


def openapi(version: str) -> dict[str, object]:
    """Describe the port as an OpenAPI document."""
    _, schemas = models_json_schema(
        [(model, "serialization") for model in (ChatRequest, Completion, Chunk, ErrorBody)],
        ref_template="#/components/schemas/{model}",
    )

    def body(model: type[_Model], media: str = "application/json") -> dict[str, object]:
        return {media: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}

    errors = {str(code): {"description": text, "content": body(ErrorBody)} for code, text in ERRORS.items()}
    answers = {
        "200": {
            "description": "The answers; as server-sent events of chunks where stream is true.",
            "content": body(Completion) | body(Chunk, "text/event-stream"),
        }
    }
    plain = {"200": {"description": "JSON.", "content": {"application/json": {"schema": {"type": "object"}}}}}
    paths: dict[str, object] = {
        COMPLETIONS_PATH: {
            "post": {"requestBody": {"required": True, "content": body(ChatRequest)}, "responses": answers | errors}
        }
    }
    for path in ("/v1/models", "/health", "/version"):
        paths[path] = {"get": {"responses": plain}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "multimodal-server", "version": version},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }
