"""How many of the CPU's threads compute an operation: waking a thread takes longer than a small operation does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import torch

if TYPE_CHECKING:
    from types import TracebackType

WORTH_WAKING: Final = 2**23
"""Multiplications, some 240 µs of one core. Both of torch's own libraries share much smaller operations out: one row's
attention to 128 positions took 11 µs on one thread and 31 on two, 16 rows by a matrix of 96 by 256 14 and 40.
Not far above that a second thread comes late more often than it helps: with a quarter of this, and a tower that shared
everything out, a tiny NeVA on two CPUs answered 78 requests a second, 32 at once; so it answers 110."""
READING_ROWS: Final = 16
"""Reading a matrix takes about as long as multiplying so many rows with it: fewer rows are not less work."""


def mean_elements(*matrices: torch.Tensor) -> int:
    """Give the size of the matrices that rows are multiplied with, of the parameters of a model.

    Args:
        matrices: Parameters; vectors among them do not count.
    """
    sizes = [one.numel() for one in matrices if one.dim() > 1]
    return sum(sizes) // len(sizes)


class Threads:
    """A context in which operations get all of the CPU's threads or one, and after which all is as before.

    A matrix product may add up in another order on another number of threads. So what is told here must not depend on
    a request's company, as little as the shapes.
    """

    def __enter__(self) -> Self:
        self._all = torch.get_num_threads()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._all)

    def share(self, *, elements: int, rows: int) -> None:
        """Choose for the next operations.

        Args:
            elements: Of the matrix that rows are multiplied with; the mean one, of several operations.
            rows: How many.
        """
        worth = elements * max(rows, READING_ROWS) >= WORTH_WAKING
        torch.set_num_threads(self._all if worth else 1)
