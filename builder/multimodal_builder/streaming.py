"""Tensors on their way from the checkpoint to a file, in pieces of bounded size.

Where a rule only moves rows, they are read straight to where the file is put together: nothing else is held of the
tensor. Other tensors are read whole, the next ones while the last one is being used.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from multimodal_builder.casts import cast
from multimodal_builder.checkpoints.tensors import CARRIERS, row_reader
from multimodal_builder.mappings.base import MOVES_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from concurrent.futures import Future

    from multimodal_builder.checkpoints.tensors import Array, RowReader, TensorInfo, TensorSource
    from multimodal_builder.mappings.base import Step

AHEAD_BYTES: Final = 384 * 2**20
"""Most bytes of whole tensors that are held at once; a larger tensor is held alone."""
PIECE_BYTES: Final = 4 * 2**20
"""Of a tensor as it is stored; in the widest type it is twice that, and a block of a file has room for it."""


class Piece(NamedTuple):
    """Some bytes of a file, and how they come to their place."""

    size: int
    put: Callable[[memoryview], object]
    """Fills a buffer of that size."""


def pieces_of(
    source: TensorSource, steps: tuple[Step, ...], *, dtype: str | None, on_read: Callable[[int], None]
) -> Generator[Iterator[Piece]]:
    """Read, convert and give one tensor after the other.

    Args:
        source: The checkpoint.
        steps: Which tensors, and what becomes of them.
        dtype: safetensors' name of the type of all weights; None keeps that of each.
        on_read: Told of bytes that were read.

    Yields:
        The values of each target in C order, as pieces; each is put to its place before the next is asked for.
    """
    infos = source.infos()
    readers = {step.source: reader for step in steps if (reader := _reader(source, step, infos[step.source]))}
    whole = tuple(step for step in steps if step.source not in readers)
    with closing(read_ahead(source, whole)) as arrays:
        for step in steps:
            if (reader := readers.pop(step.source, None)) is not None:
                info = infos[step.source]
                rows = _Rows(info, reader, dtype or info.dtype, on_read)
                yield from (rows.pieces(part.reshape(-1)) for part in step.rule.apply(np.arange(info.shape[0])))
                continue
            _, array = next(arrays)
            on_read(array.nbytes)
            for (_, info), part in zip(step.targets, step.rule.apply(array), strict=True):
                yield cut(part, source=info.dtype, target=dtype or info.dtype)
            del array, part  # the next one is read in its place


def _reader(source: TensorSource, step: Step, info: TensorInfo) -> RowReader | None:
    if not isinstance(step.rule, MOVES_ROWS) or not info.shape or _row_bytes(info) > PIECE_BYTES:
        return None
    return row_reader(source, step.source)


def _row_bytes(info: TensorInfo) -> int:
    return prod(info.shape[1:]) * CARRIERS[info.dtype].itemsize


@dataclass(frozen=True, slots=True)
class _Rows:
    """A tensor whose rows are read one piece after the other."""

    info: TensorInfo
    reader: RowReader
    target: str
    on_read: Callable[[int], None]

    def pieces(self, numbers: Array) -> Iterator[Piece]:
        """Give the rows of these numbers."""
        count = max(1, PIECE_BYTES // max(1, _row_bytes(self.info)))
        for start in range(0, len(numbers), count):
            part = numbers[start : start + count]
            size = len(part) * prod(self.info.shape[1:]) * CARRIERS[self.target].itemsize
            yield Piece(size, partial(self._put, part))

    def _put(self, numbers: Array, buffer: memoryview) -> None:
        shape = (len(numbers), *self.info.shape[1:])
        if self.target == self.info.dtype:
            self._read(numbers, _array(buffer, self.target, shape))
        else:
            array = np.empty(shape, CARRIERS[self.info.dtype])
            self._read(numbers, array)
            _array(buffer, self.target, shape)[...] = cast(array, source=self.info.dtype, target=self.target)

    def _read(self, numbers: Array, array: Array) -> None:
        """Read as many rows at once as lie one behind the other."""
        ends = [*(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
        for start, end in pairwise([0, *ends]):
            self.reader(array[start:end], int(numbers[start]))
        self.on_read(array.nbytes)


def cut(array: Array, *, source: str, target: str, size: int = PIECE_BYTES) -> Iterator[Piece]:
    """Cut a tensor into pieces.

    Args:
        array: Any strides, in the carrier type of `source`.
        source: safetensors' name of the type that the values have.
        target: The same of the type in which they are written.
        size: Most bytes of `array` in a piece.

    Yields:
        The values in C order.
    """

    def put(part: Array, buffer: memoryview) -> None:
        _array(buffer, target, part.shape)[...] = cast(part, source=source, target=target)

    for part in _parts(np.atleast_1d(array), size):
        yield Piece(part.size * CARRIERS[target].itemsize, partial(put, part))


def _array(buffer: memoryview, dtype: str, shape: tuple[int, ...]) -> Array:
    return np.ndarray(shape, CARRIERS[dtype], buffer)


def _parts(array: Array, size: int) -> Iterator[Array]:
    """Cut along the first axes until a part is small enough."""
    if array.nbytes <= size:
        yield array
        return
    if array.flags.c_contiguous:
        array = array.reshape(-1)
    rows = size * len(array) // array.nbytes
    if rows == 0:
        for row in array:
            yield from _parts(row, size)
        return
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def read_ahead(
    source: TensorSource, steps: tuple[Step, ...], *, limit: int = AHEAD_BYTES
) -> Generator[tuple[Step, Array]]:
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
