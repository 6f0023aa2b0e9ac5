"""Tensors on their way: in order, each byte once, in bounded memory, and with memory that is used again."""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_builder import streaming
from multimodal_builder.casts import cast
from multimodal_builder.checkpoints.buffers import BufferPool
from multimodal_builder.checkpoints.tensors import CARRIERS, TensorInfo
from multimodal_builder.mappings.base import MOVES_ROWS, Rename, SplitGated, SplitQkv, Step, Transpose
from multimodal_builder.streaming import cut, pieces_of, read_ahead

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multimodal_builder.checkpoints.tensors import RowReader
    from multimodal_builder.mappings.base import Rule
    from multimodal_builder.streaming import Piece

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
    reading.close()
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


def put_together(pieces: Iterable[Piece]) -> bytes:
    found = []
    for size, put in pieces:
        buffer = bytearray(size + 1)  # at an odd place
        put(memoryview(buffer)[1:])
        found.append(bytes(buffer[1:]))
    return b"".join(found)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize(("source", "target"), [("F32", "F32"), ("F32", "BF16"), ("BF16", "F32"), ("F16", "BF16")])
@pytest.mark.parametrize("size", [16, 100, 10_000])
def test_pieces_are_the_values_in_c_order(view: Any, source: str, target: str, size: int) -> None:
    bits = np.random.default_rng(1).standard_normal((5, 4, 7)).astype(np.float32)
    array = view(cast(bits, source="F32", target=source))
    assert array.dtype == CARRIERS[source]
    pieces = list(cut(array, source=source, target=target, size=size))
    assert put_together(pieces) == cast(np.ascontiguousarray(array), source=source, target=target).tobytes()
    assert max(piece.size for piece in pieces) <= 2 * size


class OneTensor:
    """A tensor that is read whole, or only by rows."""

    def __init__(self, array: Array, *, by_rows: bool) -> None:
        self.array = array
        self.by_rows = by_rows
        self.rows: list[int] = []

    def infos(self) -> dict[str, TensorInfo]:
        return {"w": TensorInfo("BF16", self.array.shape)}

    def read(self, _name: str) -> Array:
        assert not self.by_rows
        return self.array

    def row_reader(self, _name: str) -> RowReader | None:
        def read(rows: Array, first: int) -> None:
            rows[...] = self.array[first : first + len(rows)]
            self.rows += range(first, first + len(rows))

        return read if self.by_rows else None


RULES = (
    Rename("w", "a"),
    SplitGated("w", "a", "b"),
    SplitQkv("w", "a", "b", "c", heads=4, groups=2),
    Transpose("w", "a"),
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("shape", [(48, 5), (48,), (48, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [None, "F32"])
@pytest.mark.parametrize("size", [10, 11, 100, 10_000])
@pytest.mark.parametrize("by_rows", [True, False])
def test_what_is_read_by_rows_is_the_same_and_each_row_is_read_once(
    monkeypatch: pytest.MonkeyPatch, rule: Rule, shape: tuple[int, ...], dtype: str | None, size: int, *, by_rows: bool
) -> None:
    monkeypatch.setattr(streaming, "PIECE_BYTES", size)
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    array = cast(values, source="F32", target="BF16")
    moved = type(rule) in MOVES_ROWS and array[:1].nbytes <= size
    source = OneTensor(array, by_rows=by_rows and moved)
    info = source.infos()["w"]
    step = Step("w", tuple((name, TensorInfo("BF16", shape)) for name, shape in rule.targets(info)), rule)
    seen: list[int] = []
    found = [put_together(pieces) for pieces in pieces_of(source, (step,), dtype=dtype, on_read=seen.append)]
    wanted = [np.ascontiguousarray(part) for part in rule.apply(array)]
    assert found == [cast(part, source="BF16", target=dtype or "BF16").tobytes() for part in wanted]
    assert sum(seen) == array.nbytes
    assert sorted(source.rows) == (list(range(len(array))) if source.by_rows else [])


def test_tensors_of_both_kinds_come_in_order() -> None:
    source = CountingSource([8] * 6)
    rows = {"1", "2", "4"}

    def reader(name: str) -> RowReader | None:
        return (lambda array, _first: array.fill(int(name))) if name in rows else None

    source.row_reader = reader  # type: ignore[attr-defined]
    found = [put_together(pieces) for pieces in pieces_of(source, source.steps, dtype=None, on_read=lambda _: None)]
    assert found == [bytes([number]) * 8 for number in range(6)]
    assert source.reads == ["0", "3", "5"]


@pytest.mark.parametrize("broken", ["a row", "a tensor", "who takes the pieces"])
def test_an_error_ends_all_reading(broken: str) -> None:
    before = threading.active_count()
    source = CountingSource([8] * 100, broken=3 if broken == "a tensor" else None)

    def reader(name: str) -> RowReader | None:
        def read(_rows: Array, _first: int) -> None:
            if broken == "a row":
                raise OSError("broken")

        return read if name == "2" else None

    source.row_reader = reader  # type: ignore[attr-defined]
    taken: list[bytes] = []

    def take() -> None:
        with closing(pieces_of(source, source.steps, dtype=None, on_read=lambda _: None)) as tensors:
            for pieces in tensors:
                if broken == "who takes the pieces" and len(taken) == 1:
                    raise OSError("broken")
                taken.append(put_together(pieces))

    with pytest.raises(OSError, match="broken"):
        take()
    assert len(taken) == {"a row": 2, "a tensor": 3, "who takes the pieces": 1}[broken]
    assert threading.active_count() == before


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
