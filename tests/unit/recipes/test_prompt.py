from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer as FastTokenizer

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_recipes.prompt import FILLER, MediaSlot, Medium, Turn, place_media, render
from multimodal_recipes.recipe import PromptTemplate
from multimodal_recipes.tokenizer import Tokenizer
from support.tiny_tokenizer import SPECIALS

TEMPLATE = PromptTemplate(
    before="<extra_id_0>System\n\n",
    turn="<extra_id_1>User\n{text}\n<extra_id_1>Assistant\n",
    between="\n",
    medium="{media}\n",
    default_text="Hi!",
)
ROWS = 9
PICTURE = Medium((MediaSlot(ROWS),))


def ids_of(path: Path, text: str) -> list[int]:
    found: list[int] = FastTokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
    return found


def question(text: str, *media: Medium) -> Turn:
    return Turn((*(media or (PICTURE,)), text))


def test_media_stands_between_the_two_texts(tokenizer: Tokenizer, tokenizer_path: Path) -> None:
    prompt = tokenizer.encode(render(TEMPLATE, (question("what is in this image?"),)))
    before = ids_of(tokenizer_path, "<extra_id_0>System\n\n<extra_id_1>User\n")
    after = ids_of(tokenizer_path, "\nwhat is in this image?\n<extra_id_1>Assistant\n")
    assert list(prompt.ids) == before + [FILLER] * ROWS + after
    assert [(span.start, span.length) for span in prompt.media] == [(len(before), ROWS)]
    assert prompt.media_length == ROWS


def test_turns_follow_one_another() -> None:
    template = TEMPLATE.model_copy(update={"lead": " ", "between": "</s>", "turn": "U: {text} A:", "before": "S "})
    parts = render(template, (replace(question("a"), answer="b"), Turn(("c", PICTURE, "d"), answer="e"), Turn(("f",))))
    assert parts == (
        "S U: ",
        MediaSlot(ROWS),
        "\na A: b</s>U: c",
        MediaSlot(ROWS),
        "\nd A: e</s>U: f A:",
    )


def test_texts_of_a_medium_stand_inside_the_family_s_marks() -> None:
    template = TEMPLATE.model_copy(update={"medium": "<4>{media}<5>", "before": "", "turn": "{text}"})
    video = Medium(("<f>", MediaSlot(2), "</f>", MediaSlot(3)))
    assert render(template, (question("x", video, PICTURE),)) == (
        "<4><f>",
        MediaSlot(2),
        "</f>",
        MediaSlot(3),
        "<5><4>",
        MediaSlot(ROWS),
        "<5>x",
    )
    assert (video.rows, video.slots) == (5, (MediaSlot(2), MediaSlot(3)))


OTHER = Medium((MediaSlot(2),))


@pytest.mark.parametrize(
    ("text", "media", "content"),
    [
        ("what?", (PICTURE,), (PICTURE, "what?")),
        ("<image>\n what?", (PICTURE,), (PICTURE, " what?")),
        ("what is this: <video>", (PICTURE,), ("what is this: ", PICTURE)),
        ("<image> and <image>\n\n?", (PICTURE, OTHER), (PICTURE, " and ", OTHER, "\n?")),
        ("first <image> here", (PICTURE, OTHER), (PICTURE, "first ", OTHER, " here")),
        ("<image><image>x", (PICTURE,), (PICTURE, "<image>x")),
        ("<image>", (), ("<image>",)),
        ("", (PICTURE,), (PICTURE,)),
    ],
)
def test_marks_of_nemo_s_clients_are_places(
    text: str, media: tuple[Medium, ...], content: tuple[str | Medium, ...]
) -> None:
    assert place_media(text, media) == content


def test_only_the_last_turn_may_wait_for_its_answer() -> None:
    with pytest.raises(ValueError, match="answer"):
        render(TEMPLATE, (question("a"), question("b")))


def test_texts_on_both_sides_of_media_are_not_merged(tokenizer: Tokenizer, tokenizer_path: Path) -> None:
    # The vocabulary has a token for two line breaks: as one text these two would be it.
    joined = ids_of(tokenizer_path, "\n\n")
    assert len(joined) == 1
    prompt = tokenizer.encode(("\n", MediaSlot(1), "\n"))
    (line_break,) = ids_of(tokenizer_path, "\n")
    assert prompt.ids == (line_break, FILLER, line_break)


@pytest.mark.parametrize("text", ["{text}", "{}", "{0}", "{text!r}", "a {b} c", "%s", "<image>", "<extra_id_3>"])
def test_the_user_s_text_is_text(text: str) -> None:
    assert render(TEMPLATE, (question(text),))[2] == f"\n{text}\n<extra_id_1>Assistant\n"


@given(st.text(max_size=60) | st.sampled_from([*SPECIALS, "<|media:0|>", "\N{REPLACEMENT CHARACTER}", "!"]))
def test_no_text_makes_or_moves_a_media_slot(tokenizer: Tokenizer, text: str) -> None:
    prompt = tokenizer.encode(render(TEMPLATE, (question(text),)))
    (span,) = prompt.media
    (expected,) = tokenizer.encode(render(TEMPLATE, (question("x"),))).media
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


@pytest.mark.parametrize("changes", [{"turn": "no slot"}, {"turn": "{text} and {text}"}, {"medium": "{text}"}])
def test_a_template_has_one_place_for_the_text_and_one_for_the_media(changes: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="exactly once"):
        PromptTemplate.model_validate(TEMPLATE.model_dump() | changes)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProductError) as caught:
        Tokenizer(path, add_bos=False)
    assert caught.value.failure.reason is Reason.ENGINE_CORRUPT
    assert caught.value.failure.at == str(path)
