"""Arithmetic of boxes: what distributed forms cut tensors into."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, takewhile
from math import prod
from typing import TYPE_CHECKING, Final, NamedTuple

from multimodal_builder.checkpoints.buffers import empty
from multimodal_builder.checkpoints.errors import unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import EllipsisType

    from multimodal_builder.checkpoints.tensors import Array

MAX_PIECES: Final = 2048
"""Pieces that one tensor, or one layer of it, is put together from. Training on hundreds of devices makes hundreds."""

Slices = tuple[slice, ...]
BoxReader = Callable[["Array", "Box"], None]
"""Fills a C-contiguous array, as large as a box, with that box of a tensor."""


class Box(NamedTuple):
    """A part of a tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def inside(self, shape: tuple[int, ...]) -> bool:
        """Tell whether it lies in a tensor of this shape."""
        return len(self.offsets) == len(self.sizes) == len(shape) and all(
            start + size <= length for start, size, length in zip(self.offsets, self.sizes, shape, strict=True)
        )

    def common(self, other: Box) -> tuple[Slices, Slices] | None:
        """Intersect: the common part as seen from this box, and as seen from the other."""
        mine, theirs = [], []
        for own, own_size, start, size in zip(self.offsets, self.sizes, other.offsets, other.sizes, strict=True):
            low, high = max(own, start), min(own + own_size, start + size)
            if low >= high:
                return None
            mine.append(slice(low - own, high - own))
            theirs.append(slice(low - start, high - start))
        return tuple(mine), tuple(theirs)


def fill(
    array: Array,
    place: Slices,
    part: Slices,
    shape: tuple[int, ...],
    read_rows: Callable[[Array, int, tuple[int, ...]], None],
) -> None:
    """Fill a place in an array with a part of a stored one, reading no other rows than those in the part.

    Args:
        array: Is filled.
        place: In it; as large as the part.
        part: Of the stored array.
        shape: Of the stored array.
        read_rows: Fills a C-contiguous array with rows of what lies at an index of the stored array's first axes, from
            the given row on.
    """
    alone = len(list(takewhile(lambda side: side.stop - side.start == 1, part[:-1])))
    index = tuple(side.start for side in part[:alone])
    # Of slices and an ellipsis: a view, also of an array without axes.
    inside: tuple[slice | int | EllipsisType, ...] = (*(side.start for side in place[:alone]), *place[alone:], ...)
    target = array[inside]
    first, *rest = part[alone:] or (slice(0, 1),)
    rows = (first.stop - first.start, *shape[alone + 1 :]) if part else shape
    whole = target.shape == rows and target.flags.c_contiguous
    read = target if whole else empty(rows, target.dtype)
    read_rows(read, first.start, index)
    if not whole:
        target[...] = read[:, *rest]


def check_cover(pieces: Sequence[Slices], sizes: tuple[int, ...], at: str) -> None:
    """Require that pieces inside a box cover each of its values exactly once.

    Raises:
        ProductError: they do not.
    """
    if len(pieces) > MAX_PIECES:
        raise unreadable(at, f"it is cut into {len(pieces)} pieces, where at most {MAX_PIECES} are reasonable")
    covered = sum(prod(side.stop - side.start for side in piece) for piece in pieces)
    disjoint = not any(
        all(one.start < other.stop and other.start < one.stop for one, other in zip(first, second, strict=True))
        for first, second in combinations(pieces, 2)
    )
    if covered != prod(sizes) or not disjoint:
        raise unreadable(at, f"its chunks cover {covered} of {prod(sizes)} values, or overlap")
