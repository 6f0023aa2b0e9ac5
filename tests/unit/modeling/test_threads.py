from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch

from multimodal_modeling.threads import READING_ROWS, WORTH_WAKING, Threads

LARGE = WORTH_WAKING // READING_ROWS
"""Elements of the smallest matrix that all threads read together."""


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("elements", "rows", "threads"),
    [
        (LARGE - 1, 1, 1),
        (LARGE, 1, 3),
        (LARGE - 1, READING_ROWS, 1),
        (LARGE // 8, 8 * READING_ROWS - 1, 1),
        (LARGE // 8, 8 * READING_ROWS, 3),
    ],
)
def test_small_operations_get_one_thread(elements: int, rows: int, threads: int) -> None:
    with Threads() as chosen:
        chosen.share(elements=elements, rows=rows)
        assert torch.get_num_threads() == threads


def test_a_large_operation_after_a_small_one_gets_all() -> None:
    with Threads() as chosen:
        chosen.share(elements=1, rows=1)
        chosen.share(elements=LARGE, rows=1)
        assert torch.get_num_threads() == 3


def test_afterwards_all_is_as_before() -> None:
    with suppress(ValueError), Threads() as chosen:
        chosen.share(elements=1, rows=1)
        raise ValueError
    assert torch.get_num_threads() == 3
