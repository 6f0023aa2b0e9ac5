from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal_api.errors import ProductError
from multimodal_api.worker_protocol import Sampling
from multimodal_modeling.sampling import Chooser, scores_of, token_score

LOGITS = torch.tensor([1.0, 3.0, 2.0, 0.5, 9.0, 9.0])
VOCAB = 4
"""The last two rows are padding, and score best."""
SCORES = scores_of(LOGITS, VOCAB)


def draw(sampling: Sampling, *, prompt: tuple[int, ...] = (), times: int = 400) -> Counter[int]:
    chooser = Chooser(sampling, prompt_ids=prompt)
    return Counter(chooser.choose(SCORES) for _ in range(times))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(top_k=0, top_p=0.0),
        Sampling(top_k=50, temperature=0.0),
        Sampling(top_k=0, top_p=1e-6, seed=1),
    ],
    ids=["the wire's defaults", "no cut at all", "temperature 0", "a tiny nucleus"],
)
def test_greedy_takes_the_best_token_of_the_tokenizer(sampling: Sampling) -> None:
    assert draw(sampling, times=20) == {1: 20}


@pytest.mark.parametrize(
    ("sampling", "possible"),
    [
        (Sampling(top_k=2, seed=1), {1, 2}),
        (Sampling(top_k=100, seed=1), {0, 1, 2, 3}),
        (Sampling(top_k=0, top_p=0.7, seed=1), {1, 2}),
        (Sampling(top_k=0, top_p=1.0, seed=1), {0, 1, 2, 3}),
        (Sampling(top_k=3, top_p=0.7, seed=1), {1, 2}),
        (Sampling(top_k=100, top_p=0.0, seed=1), {0, 1, 2, 3}),
    ],
)
def test_candidates_are_cut(sampling: Sampling, possible: set[int]) -> None:
    assert set(draw(sampling)) == possible


def test_a_seed_repeats_and_another_does_not() -> None:
    seeded = Sampling(top_k=4, seed=5)
    assert draw(seeded) == draw(seeded)
    assert draw(seeded) != draw(Sampling(top_k=4, seed=6))


def test_temperature_spreads_the_choice() -> None:
    cold, hot = (draw(Sampling(top_k=4, temperature=value, seed=1)) for value in (0.3, 5.0))
    assert cold[1] > hot[1]


def test_a_penalty_pushes_seen_tokens_away_whatever_their_sign() -> None:
    assert draw(Sampling(repetition_penalty=2.0), prompt=(1,), times=1) == {2: 1}
    chooser = Chooser(Sampling(repetition_penalty=2.0), prompt_ids=(0, 0))
    assert chooser.choose(torch.tensor([-1.0, -1.5])) == 1


def test_history_beyond_the_tokenizer_is_no_error() -> None:
    assert draw(Sampling(repetition_penalty=2.0), prompt=(5, 400), times=1) == {1: 1}


@pytest.mark.parametrize(
    ("sampling", "taken", "chosen"),
    [
        (Sampling(presence_penalty=0.9), (1, 1, 1), 1),
        (Sampling(presence_penalty=1.1), (1,), 2),
        (Sampling(frequency_penalty=0.6), (1,), 1),
        (Sampling(frequency_penalty=0.6), (1, 1), 2),
        (Sampling(frequency_penalty=-2.0), (3, 3), 3),
        (Sampling(repetition_penalty=2.0), (1,), 2),
    ],
)
def test_the_answer_s_own_tokens_are_penalised(sampling: Sampling, taken: tuple[int, ...], chosen: int) -> None:
    chooser = Chooser(sampling, prompt_ids=())
    for token in taken:
        chooser.take(token)
    assert not chooser.takes_the_best
    assert chooser.choose(SCORES) == chosen


def test_frequency_and_presence_do_not_look_at_the_prompt() -> None:
    assert draw(Sampling(frequency_penalty=2.0, presence_penalty=2.0), prompt=(1,), times=1) == {1: 1}


def test_no_stop_token_before_the_least_length() -> None:
    chooser = Chooser(Sampling(), prompt_ids=(), stop_token_ids={1, 5000}, min_new_tokens=1)
    assert not chooser.takes_the_best
    assert chooser.choose(SCORES) == 2
    chooser.take(2)
    assert chooser.takes_the_best
    assert chooser.choose(SCORES) == 1


def test_scores_are_logarithms_of_the_model_s_own_probabilities() -> None:
    total = sum(math.exp(value) for value in SCORES)
    found = token_score(SCORES, 3, top=2)
    assert found.logprob == pytest.approx(0.5 - math.log(total))
    assert [token for token, _ in found.top] == [1, 2]
    assert found.top[0][1] == pytest.approx(3 - math.log(total))
    assert len(token_score(SCORES, 3, top=20).top) == VOCAB


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ProductError, match="not finite"):
        Chooser(Sampling(), prompt_ids=()).choose(torch.tensor([0.0, value]))


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
    sampling = Sampling(
        top_k=top_k, top_p=top_p, temperature=temperature, repetition_penalty=penalty, frequency_penalty=1.0
    )
    chooser = Chooser(sampling, prompt_ids=(0,))
    chooser.take(0)
    token = chooser.choose(scores_of(torch.tensor([*scores, *[100.0] * padding]), len(scores)))
    assert 0 <= token < len(scores)
