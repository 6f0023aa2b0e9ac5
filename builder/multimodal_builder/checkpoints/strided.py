"""Tensors whose values do not lie one behind the other, as turned, cut and expanded ones that `torch.save` keeps so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from multimodal_builder.checkpoints.tensors import raw

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_builder.checkpoints.tensors import Array

PIECE_BYTES: Final = 64 * 2**20
"""Of a storage, that are read at a time."""
MOST_EXPANDED: Final = 2**24
"""Values of a tensor that shares some among its places: a few bytes in a file may not ask for any memory."""

Strides = tuple[int, ...]


def is_contiguous(shape: tuple[int, ...], strides: Strides) -> bool:
    """Tell whether values lie one behind the other in C order; an axis of length 1 may have any stride."""
    step = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride != step and length != 1:
            return False
        step *= length
    return True


def span(shape: tuple[int, ...], strides: Strides) -> int:
    """Count the places of a storage from the first value of a tensor to its last."""
    if 0 in shape:
        return 0
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))


def shares_values(shape: tuple[int, ...], strides: Strides) -> bool:
    """Tell whether one value may stand at several places: an axis that steps over less than what lies inside it."""
    inside = 1
    for stride, length in sorted(zip(strides, shape, strict=True)):
        if length > 1 and stride < inside:
            return True
        inside += (length - 1) * stride
    return False


def gather(array: Array, strides: Strides, start: int, read: Callable[[memoryview, int], None]) -> None:
    """Fill an array with values of a storage, piece by piece.

    Args:
        array: Any strides of its own.
        strides: Of the values in the storage, in values.
        start: Of the first value.
        read: Fills a buffer with the storage's values from a place on.
    """
    if array.size == 0:
        return
    piece = max(1, PIECE_BYTES // array.itemsize)
    length = span(array.shape, strides)
    if length <= piece:
        stored = np.empty(length, array.dtype)
        read(raw(stored), start)
        in_bytes = tuple(stride * array.itemsize for stride in strides)
        array[...] = np.lib.stride_tricks.as_strided(stored, array.shape, in_bytes, writeable=False)
        return
    axis = max((stride, number) for number, stride in enumerate(strides) if array.shape[number] > 1)[1]
    step = strides[axis]
    inside = length - (array.shape[axis] - 1) * step
    count = max(1, (piece - inside) // step + 1)
    moved, rest = np.moveaxis(array, axis, 0), (*strides[:axis], *strides[axis + 1 :])
    for first in range(0, len(moved), count):
        part, place = moved[first : first + count], start + first * step
        if count == 1:
            gather(part[0, ...], rest, place, read)
        else:
            gather(part, (step, *rest), place, read)
