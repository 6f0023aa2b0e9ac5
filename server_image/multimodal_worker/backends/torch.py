"""The embedded backend: short and plain, for the CPU and one small GPU, with in-flight batching."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_modeling.kv import whole_grains
from multimodal_modeling.model import MultimodalModel
from multimodal_worker.backends.base import BackendStats, Engine, Token
from multimodal_worker.batch import MAX_ROWS, Batch, positions
from multimodal_worker.device import free_memory

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from multimodal_api.engine import BuildInputs, Limits
    from multimodal_worker.backends.base import GenerateRequest
    from multimodal_worker.batch import Outcome, Sequence
    from multimodal_worker.device import DeviceThread

KV_SHARE: Final = 0.8
"""Of the memory that is free when the engine is loaded; the rest is for what a forward pass needs."""


def load(model_dir: Path, inputs: BuildInputs, *, device: torch.device, thread: DeviceThread) -> Engine:
    """Load the canonical model as it is; `dtype` is applied to the weights in memory."""
    model = MultimodalModel.load(model_dir, dtype=getattr(torch, inputs.dtype.value), device=device)
    size = pool_positions(
        inputs.limits,
        max_positions=model.recipe.max_positions,
        position_bytes=model.llm.kv_bytes(),
        free_bytes=free_memory(device),
        on_gpu=device.type != "cpu",
    )
    batch = Batch(
        model.llm,
        model.llm.new_pool(size),
        vocab_size=model.recipe.vocab_size,
        rows=min(inputs.limits.max_batch_size, MAX_ROWS),
    )
    return Engine(
        encoder=model.media,
        embedder=model,
        backend=TorchBackend(batch, thread),
        hidden_size=model.llm.hidden_size,
    )


def pool_positions(limits: Limits, *, max_positions: int, position_bytes: int, free_bytes: int, on_gpu: bool) -> int:
    """Size the key/value memory: for as many longest requests as may run, or for what there is room for.

    Args:
        limits: of the engine.
        max_positions: longest sequence of the language model.
        position_bytes: keys and values of one position.
        free_bytes: memory that is free now.
        on_gpu: whose memory it is.

    Raises:
        ProductError: not even one longest request fits.
    """
    longest = whole_grains(min(limits.max_input_len + limits.max_output_len, max_positions))
    room = int(free_bytes * KV_SHARE) // position_bytes
    if room < longest:
        raise ProductError(
            Reason.OUT_OF_GPU_MEMORY if on_gpu else Reason.OUT_OF_MEMORY,
            at="spec.limits",
            problem=f"one request of {longest} positions (maxInputLen and maxOutputLen) takes "
            f"{longest * position_bytes / 2**30:.2f} GiB of keys and values, and {free_bytes / 2**30:.2f} GiB are free",
            remedy="lower them, or give the pod more memory (spec.serving.resources.limits.memory)"
            if not on_gpu
            else "lower them, or use a GPU with more memory",
        )
    return min(limits.max_batch_size * longest, room)


@dataclass(slots=True, eq=False)
class _Request:
    """One call of `generate`."""

    asked: GenerateRequest
    given: deque[Token | Exception | None] = field(default_factory=deque)
    """What `generate` has not seen yet; None and an exception are the end."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when `generate` should look: not for every token, where nobody waits for it."""
    sequence: Sequence | None = None
    """Its place in the batch; None while it waits."""


class TorchBackend:
    """One batch that runs while there are requests; they join in their order, and leave, between its steps."""

    def __init__(self, batch: Batch, thread: DeviceThread) -> None:
        """Take an empty batch.

        Args:
            batch: over a loaded decoder.
            thread: where every step runs.
        """
        self._batch = batch
        self._thread = thread
        self._waiting: deque[_Request] = deque()
        self._running: dict[Sequence, _Request] = {}
        self._left: list[Sequence] = []
        self._changed = False
        """Whether a request has come or gone since the batch was last let alone."""
        self._work: asyncio.Task[None] | None = None

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Token, None]:
        """Give the answer's tokens."""
        self._check_fits(request)
        mine = _Request(request)
        self._waiting.append(mine)
        self._changed = True
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run())
        try:
            while True:
                await mine.news.wait()
                mine.news.clear()
                while mine.given:
                    event = mine.given.popleft()
                    if event is None:
                        return
                    if isinstance(event, Exception):
                        raise event
                    yield event
        finally:
            self._leave(mine)

    def stats(self) -> BackendStats:
        """Count."""
        return BackendStats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_positions=self._batch.pool.positions,
            kv_positions_used=self._batch.pool.used,
        )

    async def close(self) -> None:
        """Let the running step end."""
        self._changed = True
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    async def _run(self) -> None:
        """Step until nothing runs and nothing waits."""
        loop = asyncio.get_running_loop()
        while True:
            self._let_in_and_out()
            if not self._running:
                return
            try:
                await self._thread.run(self._steps, loop)
            except Exception as error:  # noqa: BLE001 -- a defect of the batch: nobody may wait for ever
                self._left += self._running
                self._hand_out([(sequence, error) for sequence in self._running])

    def _steps(self, loop: asyncio.AbstractEventLoop) -> None:
        """Step on the device's thread until requests come or go, or others want it: hand-overs take time, too.

        What nobody waits for is held until then: to wake the loop for every token took a twelfth of an answer.
        """
        held: list[Outcome] = []
        ended = False
        while not ended:
            held += (outcomes := self._batch.step())
            ended = (
                self._changed
                or self._thread.is_wanted
                or not all(isinstance(outcome, Token) for _, outcome in outcomes)
            )
            if ended or any(sequence.request.stream for sequence, _ in outcomes):
                loop.call_soon_threadsafe(self._hand_out, held)
                held = []

    def _hand_out(self, outcomes: list[Outcome]) -> None:
        """Give requests what a step did for them."""
        for sequence, outcome in outcomes:
            request = self._running.get(sequence)
            if request is None:
                continue  # it went away during the step
            request.given.append(outcome)
            ended = not isinstance(outcome, Token)
            if ended:
                del self._running[sequence]
            if ended or request.asked.stream:
                request.news.set()

    def _let_in_and_out(self) -> None:
        """Between two steps: the batch is in nobody else's hands."""
        self._changed = False
        while self._left:
            self._batch.leave(self._left.pop())
        while self._waiting:
            request = self._waiting[0]
            try:
                sequence = self._batch.join(request.asked)
            except Exception as error:  # noqa: BLE001 -- whatever it is, the others must not wait for ever
                self._waiting.popleft()
                request.given.append(error)
                request.news.set()
                continue
            if sequence is None:
                return  # those behind it wait too, else a long prompt would wait for ever
            self._waiting.popleft()
            request.sequence = sequence
            self._running[sequence] = request

    def _leave(self, request: _Request) -> None:
        """Give a request's place back, if it is not back already."""
        if request.sequence is None:
            if request in self._waiting:
                self._waiting.remove(request)
        elif self._running.pop(request.sequence, None) is not None:
            self._left.append(request.sequence)
            self._changed = True

    def _check_fits(self, request: GenerateRequest) -> None:
        wanted, there = positions(request), self._batch.pool.positions
        if wanted > there:
            raise ProductError(
                Reason.REQUEST_REFUSED,
                at="prompt",
                problem=f"prompt and answer take up to {wanted} positions, and the key/value memory has {there}",
                remedy="shorten the text or ask for fewer tokens; spec.limits decides the memory",
            )
