from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from multimodal_modeling.kv import GRAIN, KvPool, KvShape, SequenceCache

SHAPES = (KvShape(2, 3), KvShape(1, 4))


def made(positions: int) -> KvPool:
    return KvPool(SHAPES, positions, dtype=torch.float32, device=torch.device("cpu"))


def test_a_sequence_reads_what_it_wrote_and_nothing_else() -> None:
    pool = made(4 * GRAIN)
    first, second = pool.reserve(20), pool.reserve(5)
    assert first is not None
    assert second is not None
    written = {}
    for cache, value in ((first, 1.0), (second, 2.0), (first, 3.0)):
        new = torch.full((1, 2, 4, 3), value)
        keys, values = cache.update(new, -new, 0)
        cache.length += 4
        written[cache] = keys.clone()
        assert keys.shape == values.shape == (1, 2, cache.length, 3)
        assert torch.equal(values, -keys)
    assert written[first][0, 0, :, 0].tolist() == [1.0] * 4 + [3.0] * 4
    assert written[second][0, 0, :, 0].tolist() == [2.0] * 4


def test_the_pool_is_bounded_and_a_released_place_is_taken_again() -> None:
    pool = made(4 * GRAIN + 3)
    assert pool.positions == 4 * GRAIN
    assert pool.reserve(pool.positions + 1) is None
    places = [pool.reserve(GRAIN + 1), pool.reserve(1), pool.reserve(GRAIN)]
    assert None not in places
    assert pool.used == pool.positions
    assert pool.reserve(1) is None
    pool.release(places[1])  # type: ignore[arg-type]
    again = pool.reserve(GRAIN)
    assert again is not None
    assert again.place == places[1].place  # type: ignore[union-attr]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60), st.integers(0, 100)), max_size=40))
def test_places_never_overlap_and_all_comes_back(steps: list[tuple[bool, int, int]]) -> None:
    pool = made(10 * GRAIN)
    held: list[SequenceCache] = []
    for take, length, which in steps:
        if take:
            cache = pool.reserve(length)
            if cache is not None:
                assert len(cache.place) >= length
                held.append(cache)
        elif held:
            pool.release(held.pop(which % len(held)))
        taken = [position for cache in held for position in cache.place]
        assert len(taken) == len(set(taken)) == pool.used
        assert max(taken, default=0) < pool.positions
    for cache in held:
        pool.release(cache)
    assert pool.used == 0
    assert pool.reserve(pool.positions) is not None
