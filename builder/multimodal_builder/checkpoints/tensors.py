"""One view of all weight forms: named tensors whose bytes are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = np.ndarray[Any, np.dtype[Any]]
RowReader = Callable[[Array, int], None]
"""Fills a C-contiguous array, of a tensor's carrier type, with rows of the tensor, from the given one on."""

CARRIERS: Final[Mapping[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has no such type: conversion moves values, and needs only their size
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}
"""safetensors' names of types, and the numpy type that holds one value."""

MAX_LENGTH: Final = 2**48
"""Of an axis, and of a tensor: far beyond any file, and small enough to be printed and multiplied."""

FLOATS: Final = ("F32", "F16", "BF16")
"""Types of weights."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor without reading it."""

    dtype: str
    """A key of `CARRIERS`."""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of its values, in bytes."""
        return prod(self.shape) * CARRIERS[self.dtype].itemsize


class TensorSource(Protocol):
    """The weights of a checkpoint; layers carry their number in the name, however the file stacks them."""

    def infos(self) -> Mapping[str, TensorInfo]:
        """Give all tensors, in the order in which reading them moves forward in the file."""

    def read(self, name: str) -> Array:
        """Read one tensor, C-contiguous, in its carrier type."""


@runtime_checkable
class ByRows(Protocol):
    """A source that can read some tensors a few rows at a time, each byte once."""

    def row_reader(self, name: str) -> RowReader | None:
        """Give what reads rows of a tensor that has rows; None where it must be read whole."""


def row_reader(source: TensorSource, name: str) -> RowReader | None:
    """Give what reads rows of a tensor that has rows; None where it must be read whole."""
    return source.row_reader(name) if isinstance(source, ByRows) else None


@runtime_checkable
class Sharded(Protocol):
    """A source that knows how the ranks of training shared its tensors."""

    def shards(self, name: str, axis: int) -> int:
        """Count the parts that a tensor is stored in along an axis."""


def shards_of(source: TensorSource, name: str, axis: int) -> int:
    """Count the parts that a tensor is stored in along an axis; one, where the source does not know of any."""
    return source.shards(name, axis) if isinstance(source, Sharded) else 1


def raw(array: Array) -> memoryview:
    """Give the bytes of a C-contiguous array, to read from or to write to, without copying them."""
    return array.reshape(-1).view(np.uint8).data
