from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multimodal_worker.device import DeviceThread
from multimodal_worker.encoder import BatchedEncoder, MediaCache


class Sums:
    """Gives each item's sum as one row of width 2; counts what it is given, and can be held."""

    def __init__(self, *, takes_any_length: bool = False) -> None:
        self.takes_any_length = takes_any_length
        self.batches: list[int] = []
        self.may_go = threading.Event()
        self.may_go.set()

    def encode_together(self, items: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        assert self.may_go.wait(10)
        assert self.takes_any_length or len({item.shape for item in items}) == 1
        self.batches.append(len(items))
        if any(item.isnan().any() for item in items):
            raise ValueError("not a number")
        return [item.sum().expand(1, 2) for item in items]


def medium(*values: float) -> torch.Tensor:
    return torch.stack([torch.full((3, 2, 2), value) for value in values])


def batched(encoder: Sums, *, max_batch: int = 4, max_bytes: int = 10**6) -> BatchedEncoder:
    return BatchedEncoder(encoder, DeviceThread(), max_batch=max_batch, cache=MediaCache(max_bytes))


async def test_each_request_gets_the_rows_of_its_own_frames() -> None:
    encoder = batched(Sums(), max_batch=3)
    media = [medium(*(10 * request + frame for frame in range(1 + request % 4))) for request in range(12)]
    results = await asyncio.gather(*map(encoder.encode, media))
    for given_frames, rows in zip(media, results, strict=True):
        assert torch.equal(rows, given_frames.sum((1, 2, 3))[:, None, None].repeat(1, 1, 2))


async def test_frames_that_wait_together_are_encoded_together() -> None:
    sums = Sums()
    sums.may_go.clear()
    encoder = batched(sums, max_batch=4)
    tasks = [asyncio.create_task(encoder.encode(medium(value))) for value in range(9)]
    await asyncio.sleep(0.05)
    sums.may_go.set()
    await asyncio.gather(*tasks)
    assert sum(sums.batches) == 9
    assert max(sums.batches) == 4
    assert len(sums.batches) <= 4


async def test_equal_content_is_encoded_once_whoever_sends_it() -> None:
    sums = Sums()
    encoder = batched(sums)
    await asyncio.gather(*(encoder.encode(medium(7)) for _ in range(5)))
    await encoder.encode(medium(7))
    assert sum(sums.batches) == 1
    assert encoder.cache.hits == 1


async def test_frames_of_different_sizes_are_never_one_batch() -> None:
    sums = Sums()
    sums.may_go.clear()
    encoder = batched(sums)
    tasks = [asyncio.create_task(encoder.encode(torch.ones(1, 3, size, size))) for size in (2, 3, 2, 4)]
    await asyncio.sleep(0.05)
    sums.may_go.set()
    assert [float(rows[0, 0, 0]) for rows in await asyncio.gather(*tasks)] == [12, 27, 12, 48]


async def test_sounds_of_different_lengths_are_one_batch() -> None:
    sums = Sums(takes_any_length=True)
    sums.may_go.clear()
    encoder = batched(sums)
    sounds = [torch.ones(1, frames, 80) for frames in (20, 2, 300, 2, 51)]
    tasks = [asyncio.create_task(encoder.encode(sound)) for sound in sounds]
    await asyncio.sleep(0.05)
    sums.may_go.set()
    rows = await asyncio.gather(*tasks)
    assert [float(row[0, 0, 0]) for row in rows] == [float(sound.sum()) for sound in sounds]
    assert sum(sums.batches) == 4
    assert len(sums.batches) <= 2


async def test_one_who_goes_away_leaves_the_result_to_the_others() -> None:
    sums = Sums()
    sums.may_go.clear()
    encoder = batched(sums)
    leaving, staying = (asyncio.create_task(encoder.encode(medium(3))) for _ in range(2))
    await asyncio.sleep(0.05)
    leaving.cancel()
    sums.may_go.set()
    assert float((await staying)[0, 0, 0]) == 36
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_an_error_reaches_all_who_wait_and_nobody_else() -> None:
    encoder = batched(Sums(), max_batch=1)
    bad, good = medium(float("nan")), medium(1)
    results = await asyncio.gather(*map(encoder.encode, (bad, good, bad)), return_exceptions=True)
    assert isinstance(results[0], ValueError)
    assert isinstance(results[1], torch.Tensor)
    assert isinstance(results[2], ValueError)
    assert torch.equal(await encoder.encode(good), torch.full((1, 1, 2), 12.0))


class Uncopied(torch.Tensor):
    """Rows for whose copy there is no memory."""

    def clone(self, **_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError


async def test_a_batch_whose_rows_cannot_be_kept_is_an_error_of_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, encode = batched(Sums()), Sums.encode_together
    with monkeypatch.context() as short:
        short.setattr(Sums, "encode_together", lambda *given: [rows.as_subclass(Uncopied) for rows in encode(*given)])
        results = await asyncio.gather(*(encoder.encode(medium(value)) for value in (1, 2)), return_exceptions=True)
    assert all(isinstance(result, torch.OutOfMemoryError) for result in results)
    assert torch.equal(await encoder.encode(medium(2)), torch.full((1, 1, 2), 24.0))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=60))
def test_the_cache_stays_in_its_bound_and_keeps_what_was_used_last(uses: list[tuple[int, int]]) -> None:
    cache = MediaCache(max_bytes=4 * 10)
    sizes: dict[int, int] = {}
    for name, size in uses:
        key = name.to_bytes(1, "big")
        if cache.get(key) is None:
            cache.put(key, torch.zeros(sizes.setdefault(name, size)))
        assert cache.get(key) is not None
        assert cache.bytes <= 40
        assert cache.bytes == sum(rows.nbytes for rows in cache._rows.values())


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = MediaCache(max_bytes=10)
    cache.put(b"small", torch.zeros(1))
    cache.put(b"large", torch.zeros(100))
    assert cache.get(b"small") is not None
    assert cache.get(b"large") is None
