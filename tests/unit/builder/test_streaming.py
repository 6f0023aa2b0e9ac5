"""Tensors on their way: in order, each byte once, in bounded memory, and with memory that is used again."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_builder.casts import cast
from multimodal_builder.checkpoints.buffers import BufferPool
from multimodal_builder.checkpoints.tensors import CARRIERS, TensorInfo
from multimodal_builder.mappings.base import Rename, Step
from multimodal_builder.streaming import Staging, read_ahead

Array = np.ndarray[Any, np.dtype[Any]]


class CountingSource:
    """Gives tensors of so many bytes, and knows how many of them are alive."""

    def __init__(self, sizes: list[int], broken: int | None = None) -> None:
        self._infos = {str(number): TensorInfo("U8", (size,)) for number, size in enumerate(sizes)}
        self._broken = broken
        self.alive = self.most = 0
        self.reads: list[str] = []

    def infos(self) -> dict[str, TensorInfo]:
        return self._infos

    def read(self, name: str) -> Array:
        if int(name) == self._broken:
            raise OSError("broken")
        self.reads.append(name)
        array = np.full(self._infos[name].shape, int(name), np.uint8)
        self.alive += array.nbytes
        self.most = max(self.most, self.alive)
        weakref.finalize(array, self._ended, array.nbytes)
        return array

    def _ended(self, size: int) -> None:
        self.alive -= size

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(Step(name, ((name, info),), Rename(name, name)) for name, info in self._infos.items())


@given(sizes=st.lists(st.integers(0, 9), max_size=12), limit=st.integers(1, 30))
def test_tensors_come_in_order_and_are_read_once(sizes: list[int], limit: int) -> None:
    source = CountingSource(sizes)
    read = [(step.source, array.tobytes()) for step, array in read_ahead(source, source.steps, limit=limit)]
    assert read == [(str(number), bytes([number]) * size) for number, size in enumerate(sizes)]
    assert source.reads == [str(number) for number in range(len(sizes))]


def test_what_is_held_is_bounded() -> None:
    sizes = [10, 20, 30, 1, 1, 1, 50, 200, 10, 10, 10, 10]
    source = CountingSource(sizes)
    for _, array in read_ahead(source, source.steps, limit=60):
        del array
    # Beside what is held there may be the one that the consumer has just let go.
    assert source.most <= max(60, *sizes) + max(sizes)


@pytest.mark.parametrize("broken", [0, 3, 5])
def test_what_was_read_before_an_error_is_given(broken: int) -> None:
    source = CountingSource([10] * 6, broken=broken)
    reading = read_ahead(source, source.steps)
    assert [next(reading)[0].source for _ in range(broken)] == [str(number) for number in range(broken)]
    with pytest.raises(OSError, match="broken"):
        next(reading)


def test_an_end_in_the_middle_leaves_no_thread() -> None:
    source = CountingSource([10] * 100)
    before = threading.active_count()
    reading = read_ahead(source, source.steps, limit=30)
    next(reading)
    reading.close()  # type: ignore[attr-defined] -- it is a generator
    assert threading.active_count() == before
    assert len(source.reads) < 10


VIEWS = {
    "as it is": lambda a: a,
    "other order of axes": lambda a: a.transpose(2, 0, 1),
    "columns": lambda a: a[:, :, 1:],
    "every second row": lambda a: a[::2],
    "backwards": lambda a: a[:, ::-1],
    "one value": lambda a: a[0, 0, 0:1].reshape(()),
    "nothing": lambda a: a[:0],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize(("source", "target"), [("F32", "F32"), ("F32", "BF16"), ("BF16", "F32"), ("F16", "BF16")])
@pytest.mark.parametrize("size", [16, 100, 10_000])
def test_pieces_are_the_values_in_c_order(view: Any, source: str, target: str, size: int) -> None:
    bits = np.random.default_rng(1).standard_normal((5, 4, 7)).astype(np.float32)
    array = view(cast(bits, source="F32", target=source))
    assert array.dtype == CARRIERS[source]
    pieces = [bytes(piece) for piece in Staging(size).pieces(array, source=source, target=target)]
    assert b"".join(pieces) == cast(np.ascontiguousarray(array), source=source, target=target).tobytes()
    assert max(map(len, pieces)) <= 2 * size


def test_memory_comes_back_with_the_last_view_and_not_before() -> None:
    pool = BufferPool()
    first = pool.empty((2, 2**20), np.dtype(np.uint8))
    place = first.__array_interface__["data"][0]
    view = first[1:].view(np.uint16)
    del first
    gc.collect()
    second = pool.empty((2, 2**20), np.dtype(np.uint8))
    assert second.__array_interface__["data"][0] != place
    view[:] = 7
    second[:] = 1
    assert (view == 7).all()
    del view
    third = pool.empty((2**19, 3), np.dtype(np.uint8))  # somewhat smaller
    assert third.__array_interface__["data"][0] == place
    assert third.flags.writeable
    assert third.flags.c_contiguous


def test_memory_that_waits_is_bounded() -> None:
    pool = BufferPool(kept=5 * 2**20)
    arrays = [pool.empty((2**20 + number,), np.dtype(np.uint8)) for number in range(20)]
    del arrays
    pool.empty((2**23,), np.dtype(np.uint8))  # none fits
    assert sum(map(len, pool._free.values())) <= 5 * 2**20 + 2**23
