from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer as FastTokenizer

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_recipes.prompt import FILLER, MediaSlot, render
from multimodal_recipes.recipe import PromptTemplate
from multimodal_recipes.tokenizer import Tokenizer
from tests.support.tiny_tokenizer import SPECIALS

TEMPLATE = PromptTemplate(
    before="<extra_id_0>System\n\n<extra_id_1>User\n", after="\n{text}\n<extra_id_1>Assistant\n", default_text="Hi!"
)
ROWS = 9


def ids_of(path: Path, text: str) -> list[int]:
    found: list[int] = FastTokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
    return found


def test_media_stands_between_the_two_texts(tokenizer: Tokenizer, tokenizer_path: Path) -> None:
    prompt = tokenizer.encode(render(TEMPLATE, "what is in this image?", rows=ROWS))
    before = ids_of(tokenizer_path, TEMPLATE.before)
    after = ids_of(tokenizer_path, "\nwhat is in this image?\n<extra_id_1>Assistant\n")
    assert list(prompt.ids) == before + [FILLER] * ROWS + after
    assert [(span.start, span.length) for span in prompt.media] == [(len(before), ROWS)]
    assert prompt.media_length == ROWS


def test_texts_on_both_sides_of_media_are_not_merged(tokenizer: Tokenizer, tokenizer_path: Path) -> None:
    # The vocabulary has a token for two line breaks: as one text these two would be it.
    joined = ids_of(tokenizer_path, "\n\n")
    assert len(joined) == 1
    prompt = tokenizer.encode(("\n", MediaSlot(1), "\n"))
    (line_break,) = ids_of(tokenizer_path, "\n")
    assert prompt.ids == (line_break, FILLER, line_break)


@pytest.mark.parametrize("text", ["{text}", "{}", "{0}", "{text!r}", "a {b} c", "%s", "<image>", "<extra_id_3>"])
def test_the_user_s_text_is_text(text: str) -> None:
    assert render(TEMPLATE, text, rows=ROWS)[2] == f"\n{text}\n<extra_id_1>Assistant\n"


@given(st.text(max_size=60) | st.sampled_from([*SPECIALS, "<|media:0|>", "\N{REPLACEMENT CHARACTER}", "!"]))
def test_no_text_makes_or_moves_a_media_slot(tokenizer: Tokenizer, text: str) -> None:
    prompt = tokenizer.encode(render(TEMPLATE, text, rows=ROWS))
    (span,) = prompt.media
    (expected,) = tokenizer.encode(render(TEMPLATE, "x", rows=ROWS)).media
    assert span == expected


def test_a_genuine_token_with_the_filler_s_id_stays_text(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode((SPECIALS[FILLER], MediaSlot(2), SPECIALS[FILLER]))
    assert prompt.ids == (FILLER,) * 4
    assert [(span.start, span.length) for span in prompt.media] == [(1, 2)]


def test_two_tokenizers_never_share_a_mark(tokenizer_path: Path) -> None:
    one, other = (Tokenizer(tokenizer_path, add_bos=False) for _ in range(2))
    stolen = one._mark
    assert not other.encode((stolen,)).media
    assert max(other.encode((stolen,)).ids) < FastTokenizer.from_file(str(tokenizer_path)).get_vocab_size()


@pytest.mark.parametrize("after", ["no slot", "{text} and {text}"])
def test_a_template_has_one_place_for_the_text(after: str) -> None:
    with pytest.raises(ValidationError, match="exactly once"):
        PromptTemplate(before="", after=after, default_text="Hi!")


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProductError) as caught:
        Tokenizer(path, add_bos=False)
    assert caught.value.failure.reason is Reason.ENGINE_CORRUPT
    assert caught.value.failure.at == str(path)
