from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_recipes.tokenizer import TextStream, Tokenizer

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)


def ids_of(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tokenizer.encode((text,)).ids


@given(text=TEXTS, cuts=st.lists(st.integers(1, 4), max_size=40))
def test_pieces_put_together_are_the_whole_text(tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
    ids = ids_of(tokenizer, text)
    stream = TextStream(tokenizer, ())
    pieces, at = [], 0
    for cut in (*cuts, len(ids)):
        pieces.append(stream.push(ids[at : at + cut]))
        at += cut
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text == tokenizer.decode(ids)


@given(
    before=TEXTS, after=TEXTS, stops=st.lists(st.sampled_from(["STOP", "\n\n", "é!", "aab"]), min_size=1, max_size=3)
)
def test_an_answer_ends_before_the_first_stop_string(
    tokenizer: Tokenizer, before: str, after: str, stops: list[str]
) -> None:
    whole = tokenizer.decode(ids_of(tokenizer, before + stops[0] + after))
    stream = TextStream(tokenizer, stops)
    given_out = "".join(stream.push([token]) for token in ids_of(tokenizer, before + stops[0] + after))
    given_out += stream.finish()
    places = [place for place in (whole.find(stop) for stop in stops) if place >= 0]
    assert given_out == stream.text == whole[: min(places)]
    assert stream.stopped


def test_nothing_is_given_out_that_may_begin_a_stop_string(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ["STOP"])
    assert "".join(stream.push([token]) for token in ids_of(tokenizer, "say ST")) == "say "
    assert stream.push(ids_of(tokenizer, "AR")) == "STAR"
    assert not stream.stopped


def test_half_a_character_waits_for_its_other_half(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, "é")
    assert len(ids) == 2
    stream = TextStream(tokenizer, ())
    assert stream.push(ids[:1]) == ""
    assert stream.push(ids[1:]) == "é"


def test_nothing_comes_after_a_stop(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ["STOP"])
    stream.push(ids_of(tokenizer, "a STOP b"))
    assert stream.push(ids_of(tokenizer, "more")) == ""
    assert stream.finish() == ""
    assert stream.text == "a "


@pytest.mark.parametrize(
    ("strings", "count"), [((), 0), (("<extra_id_1>",), 1), (("STOP",), 0), (("</s>", "no such"), 1)]
)
def test_stop_strings_that_are_one_token_become_ids(tokenizer: Tokenizer, strings: tuple[str, ...], count: int) -> None:
    assert len(tokenizer.stop_ids(strings)) == count
