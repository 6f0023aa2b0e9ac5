from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal_modeling.splice import SpanMismatchError, splice


@settings(deadline=None, max_examples=40)
@given(tokens=st.integers(1, 12), data=st.data())
def test_media_rows_stand_where_they_belong_and_text_stays(tokens: int, data: st.DataObject) -> None:
    at = data.draw(st.lists(st.integers(0, tokens - 1), unique=True, max_size=tokens))
    text, media = torch.randn(tokens, 3), torch.randn(len(at), 3)
    spliced = splice(text, media, torch.tensor(at, dtype=torch.long))
    for row in range(tokens):
        wanted = media[at.index(row)] if row in at else text[row]
        assert torch.equal(spliced[row], wanted)


def test_the_result_has_the_texts_type() -> None:
    spliced = splice(torch.zeros(3, 2, dtype=torch.bfloat16), torch.ones(1, 2), torch.tensor([1]))
    assert spliced.dtype is torch.bfloat16
    assert spliced.tolist() == [[0, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_template_and_a_preprocessor_that_disagree_are_an_error(rows: int) -> None:
    with pytest.raises(SpanMismatchError, match=f"2 media positions in the prompt, {rows} rows"):
        splice(torch.zeros(5, 2), torch.zeros(rows, 2), torch.tensor([1, 2]))
