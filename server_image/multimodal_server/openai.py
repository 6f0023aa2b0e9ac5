"""The HTTP port that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiohttp import web
from pydantic import ValidationError

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_server.chat import finish_reason, logprobs, media_addresses, read_chat
from multimodal_server.fetching import Fetcher
from multimodal_server.openai_schema import (
    COMPLETIONS_PATH,
    DOCUMENT_PATH,
    MODELS_PATH,
    Answer,
    ChatRequest,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    ErrorBody,
    ErrorDetail,
    Health,
    ModelCard,
    Models,
    Usage,
    Version,
    openapi,
)
from multimodal_server.streams import asking

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from multimodal_server.answers import Responder
    from multimodal_server.questions import Prepared
    from multimodal_server.replies import Piece, Reply
    from multimodal_server.streams import Answers

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LOG: Final = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 2**27
"""Of a request: base64 of the largest pictures that are decoded, or of a video of 96 MiB."""
START_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.05
RETRY_AFTER_SECONDS: Final = 1
"""What is said to those whom a full queue refuses: about one answer's time."""


_FETCHER: Final = web.AppKey("fetcher", Fetcher)


class _Status(NamedTuple):
    code: HTTPStatus
    type: str


_STATUS: Final = {
    Reason.REQUEST_REFUSED: _Status(HTTPStatus.BAD_REQUEST, "invalid_request_error"),
    Reason.UNSUPPORTED_MODEL: _Status(HTTPStatus.BAD_REQUEST, "invalid_request_error"),
    Reason.SERVER_BUSY: _Status(HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_error"),
    Reason.SHUTTING_DOWN: _Status(HTTPStatus.SERVICE_UNAVAILABLE, "server_error"),
    Reason.DEADLINE_EXCEEDED: _Status(HTTPStatus.SERVICE_UNAVAILABLE, "server_error"),
    Reason.OUT_OF_GPU_MEMORY: _Status(HTTPStatus.SERVICE_UNAVAILABLE, "server_error"),
}
_FAILED: Final = _Status(HTTPStatus.INTERNAL_SERVER_ERROR, "server_error")


@dataclass(slots=True)
class _Collected:
    """One whole answer."""

    reply: Reply
    pieces: list[Piece] = field(default_factory=list)


class OpenAiPort:
    """The port, in a thread and a loop of its own."""

    def __init__(
        self,
        responder: Responder,
        *,
        model: str,
        version: str,
        address: str,
        port: int,
        fetcher: AbstractAsyncContextManager[Fetcher],
    ) -> None:
        """Prepare.

        Args:
            responder: answers.
            model: its name on the wire.
            version: of this software.
            address: to listen on.
            port: to listen on.
            fetcher: of media that requests name by address.
        """
        self._responder = responder
        self._fetcher = fetcher
        self._model = model
        self._version = version
        self._where = (address, port)
        self._card = ModelCard(id=model, created=int(time.time()))
        self._running = 0
        self._leaving = False
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None

    def start(self) -> None:
        """Listen."""
        threading.Thread(target=self._loop.run_forever, name="openai", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(START_SECONDS)

    def leave(self) -> None:
        """Say that this server will stop: `/health` fails, and every answer is its connection's last."""
        self._leaving = True

    def stop(self, seconds: float) -> None:
        """Take no more, and wait for those that run, so many seconds at most."""
        self._leaving = self._closing = True
        ends = time.monotonic() + seconds
        while self._running and time.monotonic() < ends:
            time.sleep(POLL_SECONDS)
        if self._runner is not None:
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(START_SECONDS)

    def app(self) -> web.Application:
        """Make the application."""
        app = web.Application(middlewares=[_errors], client_max_size=MAX_BODY_BYTES)
        app.on_response_prepare.append(self._part)
        app.cleanup_ctx.append(self._fetching)
        app.add_routes(
            [
                web.post(COMPLETIONS_PATH, self._complete),
                web.get(MODELS_PATH, _fixed(Models(data=[self._card]).model_dump_json())),
                web.get(MODELS_PATH + "/{model}", self._show_model),
                web.get("/health", self._health),
                web.get("/version", _fixed(Version(version=self._version).model_dump_json())),
                web.get(DOCUMENT_PATH, _fixed(json.dumps(openapi(self._version, self._model)))),
            ]
        )
        return app

    async def _listen(self) -> None:
        # A client that goes away cancels its handler, and the handler its answers.
        self._runner = web.AppRunner(self.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, *self._where).start()

    async def _fetching(self, app: web.Application) -> AsyncGenerator[None, None]:
        async with self._fetcher as app[_FETCHER]:
            yield

    async def _show_model(self, request: web.Request) -> web.Response:
        self._check_model(request.match_info["model"])
        return _json(self._card)

    async def _part(self, _request: web.Request, response: web.StreamResponse) -> None:
        """Have a client that keeps its connection open its next one, which leads to another pod."""
        if self._leaving:
            response.force_close()
            response.headers["Connection"] = "close"

    async def _health(self, _request: web.Request) -> web.Response:
        if self._leaving:
            raise _shutting_down()
        return _json(Health())

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        if self._closing:
            raise _shutting_down()
        asked = _read(await request.read())
        self._check_model(asked.model)
        self._running += 1
        try:
            with self._responder.handling():
                media = await request.app[_FETCHER].fetch(media_addresses(asked, self._responder.engine.recipe))
                head = {"id": f"chatcmpl-{time.time_ns():x}", "created": int(time.time()), "model": self._model}
                prepare = partial(self._prepare, asked, media)
                async with asking(self._responder, prepare, stream=bool(asked.stream)) as answers:
                    if asked.stream:
                        return await self._stream(request, asked, answers, head)
                    return await self._answer(answers, head)
        finally:
            self._running -= 1

    def _prepare(self, asked: ChatRequest, media: Mapping[str, bytes]) -> Prepared:
        engine = self._responder.engine
        return self._responder.prepare(read_chat(asked, engine.limits, engine.recipe, media))

    async def _answer(self, answers: Answers, head: dict[str, Any]) -> web.Response:
        """Answer at once, when all is there."""
        computed = [_Collected(reply) for reply in answers.replies]
        async for number, piece in answers.pieces():
            computed[number].pieces.append(piece)
        choices = []
        for index in range(answers.prepared.question.copies):
            one = computed[index % len(computed)]
            choices.append(
                Choice(
                    index=index,
                    message=Answer(content="".join(piece.text for piece in one.pieces)),
                    finish_reason=finish_reason(one.reply.finish),
                    logprobs=logprobs(one.pieces, self._responder.engine.tokenizer),
                )
            )
        usage = _usage(answers)
        return _json(Completion(**head, choices=choices, usage=usage))

    async def _stream(
        self, request: web.Request, asked: ChatRequest, answers: Answers, head: dict[str, Any]
    ) -> web.StreamResponse:
        """Answer as it comes."""
        tokenizer = self._responder.engine.tokenizer
        replies = answers.replies
        copies = answers.prepared.question.copies
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})

        async def send(**fields: Any) -> None:  # noqa: ANN401 -- of a chunk
            if not response.prepared:
                await response.prepare(request)
                first = [ChunkChoice(index=index, delta=Delta(role="assistant", content="")) for index in range(copies)]
                await _event(response, Chunk(**head, choices=first))
            await _event(response, Chunk(**head, **fields))

        try:
            async for number, piece in answers.pieces():
                finish = replies[number].finish
                scored = logprobs([piece], tokenizer)
                if piece.text or scored or finish is not None:
                    choices = [
                        ChunkChoice(
                            index=index,
                            delta=Delta(content=piece.text),
                            finish_reason=None if finish is None else finish_reason(finish),
                            logprobs=scored,
                        )
                        for index in (range(copies) if len(replies) == 1 else (number,))
                    ]
                    await send(choices=choices)
            if asked.stream_options is not None and asked.stream_options.include_usage:
                await send(choices=[], usage=_usage(answers))
        except ProductError as error:
            if not response.prepared:
                raise
            await _event(response, _body(error))  # the status has been sent: this is all that can be said
            raise
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _check_model(self, name: str) -> None:
        if name != self._model:
            raise web.HTTPNotFound(text=f"there is no model of this name; this server has {self._model!r}")


def _read(body: bytes) -> ChatRequest:
    """Read a request's body.

    Raises:
        ProductError: it is no chat request.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "body"
        raise ProductError(
            Reason.REQUEST_REFUSED,
            at=place,
            problem=first["msg"],
            remedy="see /openapi.json for what this server takes",
        ) from None


def _usage(answers: Answers) -> Usage:
    prompt, told = len(answers.prepared.prompt.ids), sum(reply.tokens for reply in answers.replies)
    return Usage(prompt_tokens=prompt, completion_tokens=told, total_tokens=prompt + told)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give every error OpenAI's shape."""
    try:
        return await handler(request)
    except ProductError as error:
        status = _STATUS.get(error.failure.reason, _FAILED)
        busy = status.code is HTTPStatus.TOO_MANY_REQUESTS
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if busy else None
        return _json(_body(error), status.code, headers)
    except web.HTTPException as error:
        detail = ErrorDetail(message=error.text or error.reason, type="invalid_request_error", code=error.reason)
        return _json(ErrorBody(error=detail), HTTPStatus(error.status))


def _body(error: ProductError) -> ErrorBody:
    failure = error.failure
    return ErrorBody(
        error=ErrorDetail(
            message=str(failure),
            type=_STATUS.get(failure.reason, _FAILED).type,
            param=failure.at,
            code=failure.reason,
        )
    )


def _shutting_down() -> ProductError:
    return ProductError(
        Reason.SHUTTING_DOWN, at="server", problem="it is stopping", remedy="send the request to another pod"
    )


def _json(
    body: Completion | ErrorBody | ModelCard | Health,
    status: HTTPStatus = HTTPStatus.OK,
    headers: dict[str, str] | None = None,
) -> web.Response:
    return web.Response(text=body.model_dump_json(), status=status, headers=headers, content_type="application/json")


async def _event(response: web.StreamResponse, body: Chunk | ErrorBody) -> None:
    await response.write(f"data: {body.model_dump_json(exclude_none=True)}\n\n".encode())


def _fixed(text: str) -> Handler:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="application/json")

    return handler
