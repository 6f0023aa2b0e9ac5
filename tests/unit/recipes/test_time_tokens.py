from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_recipes.recipe import TimeTokens
from multimodal_recipes.time_tokens import TimeStream, decode_times, encode_times, token_for

TIMES = TimeTokens(count=100)


@pytest.mark.parametrize(
    ("seconds", "duration", "token"),
    [
        (0, 10, "<t0>"),
        (10, 10, "<t99>"),
        (5, 10, "<t50>"),
        (2.5, 10, "<t25>"),
        (3.3, 60, "<t5>"),
        (12, 10, "<t99>"),
        (float("inf"), 10, "<t99>"),
    ],
)
def test_a_moment_has_a_token(seconds: float, duration: float, token: str) -> None:
    # round((100 - 1) * seconds / duration), halves to the even one: 49.5 is 50, 24.75 is 25, 5.445 is 5.
    assert token_for(TIMES, seconds, duration=duration) == token


def test_seconds_in_angle_brackets_become_tokens_and_nothing_else() -> None:
    text = "From <2.5> to <10>: <b>bold</b>, 3 < 4, <1,5> and <t7>?"
    assert encode_times(TIMES, text, duration=10) == "From <t25> to <t99>: <b>bold</b>, 3 < 4, <1,5> and <t7>?"


def test_tokens_become_seconds_with_two_decimals() -> None:
    assert decode_times(TIMES, "<t0> <t33><t99> red <t100> <t> <t07>", duration=12) == (
        "<0.00> <4.00><12.00> red <t100> <t> <t07>"
    )


def test_what_may_become_a_token_is_held_back_and_nothing_else() -> None:
    stream = TimeStream(TIMES, 12)
    given = [stream.push(piece) for piece in ("from <", "t3", "3> to", " <b> <t", "x <t1", "23", "> <t0")]
    assert given == ["from ", "", "<4.00> to", " <b> ", "<tx ", "<t123", "> "]
    assert stream.finish() == "<t0"
    assert stream.finish() == ""


@given(st.lists(st.text("<t>0129 ", max_size=6), max_size=12), st.sampled_from([2, 10, 11, 100]))
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], count: int) -> None:
    times = TimeTokens(count=count)
    stream = TimeStream(times, 7.5)
    given = [stream.push(piece) for piece in pieces]
    whole = decode_times(times, "".join(pieces), duration=7.5)
    for end in range(len(given)):
        assert whole.startswith("".join(given[: end + 1]))
    assert "".join(given) + stream.finish() == whole


@given(st.integers(0, 99), st.floats(0.99, 1000))
def test_a_token_comes_back(index: int, duration: float) -> None:
    seconds = index * duration / 99
    assert token_for(TIMES, seconds, duration=duration) == f"<t{index}>"
