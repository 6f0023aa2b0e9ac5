from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal_modeling.sampling import SamplingParameters, make_generator, sample

SCORES = torch.tensor([1.0, 3.0, 2.0, 0.5, 9.0, 9.0])
VOCAB = 4
"""The last two rows are padding, and score best."""


def draw(parameters: SamplingParameters, *, history: tuple[int, ...] = (), times: int = 400) -> Counter[int]:
    generator = make_generator(parameters)
    return Counter(
        sample(SCORES, parameters, vocab_size=VOCAB, history=history, generator=generator) for _ in range(times)
    )


@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(),
        SamplingParameters(top_k=0, top_p=0.0),
        SamplingParameters(top_k=50, temperature=0.0),
        SamplingParameters(top_k=0, top_p=1e-6, seed=1),
    ],
    ids=["the wire's defaults", "no cut at all", "temperature 0", "a tiny nucleus"],
)
def test_greedy_takes_the_best_token_of_the_tokenizer(parameters: SamplingParameters) -> None:
    assert draw(parameters, times=20) == {1: 20}


@pytest.mark.parametrize(
    ("parameters", "possible"),
    [
        (SamplingParameters(top_k=2, seed=1), {1, 2}),
        (SamplingParameters(top_k=100, seed=1), {0, 1, 2, 3}),
        (SamplingParameters(top_k=0, top_p=0.7, seed=1), {1, 2}),
        (SamplingParameters(top_k=0, top_p=1.0, seed=1), {0, 1, 2, 3}),
        (SamplingParameters(top_k=3, top_p=0.7, seed=1), {1, 2}),
        (SamplingParameters(top_k=100, top_p=0.0, seed=1), {0, 1, 2, 3}),
    ],
)
def test_candidates_are_cut(parameters: SamplingParameters, possible: set[int]) -> None:
    assert set(draw(parameters)) == possible


def test_a_seed_repeats_and_none_does_not() -> None:
    seeded = SamplingParameters(top_k=4, seed=5)
    assert draw(seeded) == draw(seeded)
    free = SamplingParameters(top_k=4, temperature=2.0)
    assert draw(free) != draw(free)


def test_temperature_spreads_the_choice() -> None:
    cold, hot = (draw(SamplingParameters(top_k=4, temperature=value, seed=1)) for value in (0.3, 5.0))
    assert cold[1] > hot[1]


def test_a_penalty_pushes_seen_tokens_away_whatever_their_sign() -> None:
    assert draw(SamplingParameters(repetition_penalty=2.0), history=(1,), times=1) == {2: 1}
    negative = SamplingParameters(repetition_penalty=2.0)
    scores = torch.tensor([-1.0, -1.5])
    chosen = sample(scores, negative, vocab_size=2, history=(0, 0), generator=make_generator(negative))
    assert chosen == 1


def test_history_beyond_the_tokenizer_is_no_error() -> None:
    assert draw(SamplingParameters(repetition_penalty=2.0), history=(5, 400), times=1) == {1: 1}


@settings(deadline=None, max_examples=60)
@given(
    scores=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20),
    top_k=st.integers(0, 30),
    top_p=st.floats(0, 1),
    temperature=st.floats(0, 5),
    penalty=st.floats(0.1, 5),
    padding=st.integers(0, 3),
)
def test_any_parameters_choose_a_token_of_the_tokenizer(
    scores: list[float], top_k: int, top_p: float, temperature: float, penalty: float, padding: int
) -> None:
    parameters = SamplingParameters(
        top_k=top_k, top_p=top_p, temperature=temperature, repetition_penalty=penalty, seed=0
    )
    logits = torch.tensor([*scores, *[100.0] * padding])
    token = sample(logits, parameters, vocab_size=len(scores), history=(0,), generator=make_generator(parameters))
    assert 0 <= token < len(scores)
