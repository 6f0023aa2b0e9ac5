"""Which requests run: as many at once as the engine was built for, the others in a bounded queue, first come first."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from multimodal_api.errors import Failure, ProductError
from multimodal_api.logs import FIELDS
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Done, FinishReason, Refused, Stats, Timing, Tokens
from multimodal_worker.backends.base import GenerateRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from multimodal_api.worker_protocol import Generate, Message
    from multimodal_worker.backends.base import Engine, Token
    from multimodal_worker.device import DeviceThread
    from multimodal_worker.encoder import BatchedEncoder

LOG: Final = logging.getLogger(__name__)

WAITING_PER_RUNNING: Final = 16
"""Length of the queue, in requests per place: beyond it an answer would come too late for whoever waits."""
MIN_WAITING: Final = 64


class DeviceLostError(Exception):
    """The device is in a state that only a new process leaves."""


@dataclass(slots=True)
class _Clock:
    """Time stamps of one request, from `time.monotonic`."""

    arrived: float
    admitted: float = 0.0
    encoded: float = 0.0

    def timing(self) -> Timing:
        """Give what each part took; a part that was not reached took nothing."""
        now = time.monotonic()
        admitted = self.admitted or now
        encoded = self.encoded or now
        return Timing(
            queue=admitted - self.arrived,
            encode=max(0.0, encoded - admitted),
            generate=now - encoded,
        )


class Scheduler:
    """Takes requests, and sends tokens and ends."""

    def __init__(
        self,
        engine: Engine,
        encoder: BatchedEncoder,
        thread: DeviceThread,
        *,
        max_running: int,
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Take what requests need.

        Args:
            engine: the loaded engine.
            encoder: its encoder, batched and cached.
            thread: where splicing runs.
            max_running: requests that run at once.
            send: gives a message to the front.
        """
        self._engine = engine
        self._encoder = encoder
        self._thread = thread
        self._send = send
        self._max_waiting = max(MIN_WAITING, WAITING_PER_RUNNING * max_running)
        self._places = asyncio.Semaphore(max_running)  # wakes those who wait in their order
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._running = 0
        self.lost: asyncio.Future[DeviceLostError] = asyncio.get_running_loop().create_future()
        """Set when the device is lost."""

    async def submit(self, request: Generate, buffers: Sequence[bytearray]) -> None:
        """Begin a request or refuse it; returns at once."""
        if len(self._tasks) - self._running >= self._max_waiting:
            await self._send(Refused(request_id=request.request_id, failure=_queue_is_full(self._max_waiting)))
            return
        self._tasks[request.request_id] = asyncio.create_task(self._serve(request, buffers))
        await asyncio.sleep(0)  # it begins: a task that is cancelled before would never say how the request ended

    def cancel(self, request_id: int) -> None:
        """End a request soon; one that has ended is left alone."""
        task = self._tasks.get(request_id)
        if task is not None:
            task.cancel()

    def stats(self) -> Stats:
        """Count."""
        cache = self._encoder.cache
        backend = self._engine.backend.stats()
        running = self._running - backend.waiting
        return Stats(
            running=running,
            waiting=len(self._tasks) - running,
            kv_positions=backend.kv_positions,
            kv_positions_used=backend.kv_positions_used,
            media_cache_hits=cache.hits,
            media_cache_misses=cache.misses,
            media_cache_bytes=cache.bytes,
        )

    async def close(self) -> None:
        """End everything."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, request: Generate, buffers: Sequence[bytearray]) -> None:
        """Answer one request, and say how it ended, once."""
        clock = _Clock(time.monotonic())
        end: Done | Refused
        try:
            reason, rest = await self._answer(request, buffers, clock)
            end = Done(request_id=request.request_id, reason=reason, timing=clock.timing(), rest=rest)
        except asyncio.CancelledError:
            end = Done(request_id=request.request_id, reason=FinishReason.CANCELLED, timing=clock.timing())
        except Exception as error:  # noqa: BLE001 -- one request's error is not the others'
            end = Refused(request_id=request.request_id, failure=self._explain(request.request_id, error))
        finally:
            del self._tasks[request.request_id]
        await self._send(end)

    async def _answer(
        self, request: Generate, buffers: Sequence[bytearray], clock: _Clock
    ) -> tuple[FinishReason, Tokens | None]:
        """Answer one request; give why it ended, and the tokens that have not been sent."""
        async with self._places:
            clock.admitted = time.monotonic()
            self._running += 1
            try:
                prompt = await self._prompt(request, buffers)
                clock.encoded = time.monotonic()
                given = 0
                held: list[Token] = []
                async with aclosing(self._engine.backend.generate(prompt)) as tokens:
                    async for token in tokens:
                        given += 1
                        held.append(token)
                        if request.stream:
                            await self._send(_tokens(request.request_id, held, clock.arrived))
                            held.clear()
                reason = FinishReason.LENGTH if given == request.max_new_tokens else FinishReason.STOP
                return reason, _tokens(request.request_id, held, clock.arrived) if held else None
            finally:
                self._running -= 1

    async def _prompt(self, request: Generate, buffers: Sequence[bytearray]) -> GenerateRequest:
        """Encode media and embed the prompt."""
        encoded: list[torch.Tensor] = []
        places: list[int] = []
        for medium, buffer in zip(request.media, buffers, strict=True):
            pixels = torch.frombuffer(buffer, dtype=torch.float32).reshape(medium.shape)
            encoded.append(await self._encoder.encode(pixels))
            places += [place for span in medium.spans for place in range(span.start, span.start + span.length)]
        taken = set(places)
        return GenerateRequest(
            embeddings=await self._thread.run(self._splice, request.token_ids, places, encoded),
            text_ids=tuple(token for place, token in enumerate(request.token_ids) if place not in taken),
            sampling=request.sampling,
            max_new_tokens=request.max_new_tokens,
            stop_token_ids=request.stop_token_ids,
            min_new_tokens=request.min_new_tokens,
            top_logprobs=request.top_logprobs,
            stream=request.stream,
        )

    def _splice(self, ids: Sequence[int], places: Sequence[int], encoded: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embed a prompt, on the device's thread, with what the encoder made of its media."""
        rows = [torch.empty(0, self._engine.hidden_size)]
        rows += [self._engine.encoder.arrange(features) for features in encoded]
        media = torch.cat([part.to(rows[-1]) for part in rows])
        return self._engine.embedder.prompt_embeddings(ids, places, media)

    def _explain(self, request_id: int, error: Exception) -> Failure:
        """Turn an error into words, and notice a lost device."""
        if isinstance(error, ProductError):
            return error.failure
        if isinstance(error, torch.OutOfMemoryError):
            return Failure(
                reason=Reason.OUT_OF_GPU_MEMORY,
                at="generation",
                problem="the GPU's memory did not suffice for this request beside those that run",
                remedy="send it again later; if it happens often, lower spec.limits.maxBatchSize or maxInputLen",
            )
        LOG.error("a request failed", exc_info=error, extra={FIELDS: {"request_id": request_id}})
        if isinstance(error, torch.AcceleratorError) and not self.lost.done():
            self.lost.set_result(DeviceLostError(str(error)))
        return Failure(
            reason=Reason.INTERNAL,
            at="worker",
            problem=f"{type(error).__name__} while the request ran",
            remedy=f"report it with the log lines of request {request_id}",
        )


def _tokens(request_id: int, given: Sequence[Token], begun: float) -> Tokens:
    return Tokens(
        request_id=request_id,
        token_ids=tuple(token.id for token in given),
        seconds=tuple(token.at - begun for token in given),
        scores=tuple(token.score for token in given if token.score is not None),
    )


def _queue_is_full(length: int) -> Failure:
    return Failure(
        reason=Reason.SERVER_BUSY,
        at="queue",
        problem=f"{length} requests wait already",
        remedy="send the request again later, or raise spec.serving.replicas or spec.limits.maxBatchSize",
    )
