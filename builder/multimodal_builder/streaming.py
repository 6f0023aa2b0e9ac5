"""Tensors on their way from the checkpoint to a file: read ahead, and cut into pieces, in bounded memory."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_builder.casts import cast
from multimodal_builder.checkpoints.tensors import CARRIERS, raw

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from multimodal_builder.checkpoints.tensors import Array, TensorSource
    from multimodal_builder.mappings.base import Step

AHEAD_BYTES: Final = 384 * 2**20
"""Most bytes of tensors that are held at once; a larger tensor is held alone."""
PIECE_BYTES: Final = 16 * 2**20
"""Large enough that handing a piece to another thread costs little where others want the processors too."""


def read_ahead(
    source: TensorSource, steps: tuple[Step, ...], *, limit: int = AHEAD_BYTES
) -> Iterator[tuple[Step, Array]]:
    """Read the tensors of steps in order, the next ones while the last one is being used.

    Args:
        source: The checkpoint.
        steps: Which tensors.
        limit: Most bytes that are held at once.

    Yields:
        Each step with its tensor.
    """
    infos = source.infos()
    sizes = [infos[step.source].nbytes for step in steps]
    waiting: deque[Future[Array]] = deque()
    held = 0
    reading = ThreadPoolExecutor(1, "read")
    try:
        for number, (step, size) in enumerate(zip(steps, sizes, strict=True)):
            while (after := number + len(waiting)) < len(steps) and (not waiting or held + sizes[after] <= limit):
                waiting.append(reading.submit(source.read, steps[after].source))
                held += sizes[after]
            yield step, waiting.popleft().result()
            held -= size
    finally:
        reading.shutdown(cancel_futures=True)


class Staging:
    """A buffer for the pieces that do not lie in memory as they are written; used again for every piece."""

    def __init__(self, size: int = PIECE_BYTES) -> None:
        self._buffer = np.empty(size, np.uint8)

    def pieces(self, array: Array, *, source: str, target: str) -> Iterator[memoryview]:
        """Cut a tensor into its bytes.

        Args:
            array: Any strides, in the carrier type of `source`.
            source: safetensors' name of the type that the values have.
            target: The same of the type in which they are written.

        Yields:
            The values in C order; each piece is good until the next is asked for.
        """
        for part in self._parts(np.atleast_1d(array)):
            if source != target:
                yield raw(np.ascontiguousarray(cast(part, source=source, target=target)))
            elif part.flags.c_contiguous:
                yield raw(part)
            else:
                piece = self._buffer[: part.nbytes].view(CARRIERS[source]).reshape(part.shape)
                piece[...] = part
                yield raw(piece)

    def _parts(self, array: Array) -> Iterator[Array]:
        """Cut along the first axes until a part fits the buffer."""
        if array.nbytes <= len(self._buffer):
            yield array
            return
        if array.flags.c_contiguous:
            array = array.reshape(-1)
        rows = len(self._buffer) * len(array) // array.nbytes
        if rows == 0:
            for row in array:
                yield from self._parts(row)
            return
        for start in range(0, len(array), rows):
            yield array[start : start + rows]
