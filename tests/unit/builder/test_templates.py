"""Every template against golden prompts: texts that NeMo 2.2's own conversation code rendered, ids by SentencePiece.

`<image>` stands where NeMo puts the pieces of one medium. The ids are those after training's replacements.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from multimodal_api.families import Family
from multimodal_builder.templates import CONVERSATIONS, media_marks, prompt_template
from multimodal_recipes.prompt import render
from multimodal_recipes.tokenizer import TOKENIZER_NAME, Tokenizer
from support.archives import DISTRIBUTED, Archive
from support.golden import GOLDEN, TURNS, convert, served, training_ids


@pytest.fixture(scope="module")
def sentencepieces() -> bytes:
    archive = Archive.read(DISTRIBUTED)
    return archive.members[archive.config()["tokenizer"]["model"].removeprefix("nemo:")]


def test_there_is_a_golden_prompt_of_every_template() -> None:
    assert set(GOLDEN) == set(CONVERSATIONS)


@pytest.mark.parametrize("turns", list(TURNS))
@pytest.mark.parametrize("name", list(GOLDEN))
def test_a_prompt_has_the_ids_of_training(sentencepieces: bytes, tmp_path: Path, name: str, turns: str) -> None:
    prompt = served(convert(sentencepieces, name), tmp_path, turns)
    (span,) = prompt.media
    assert span.length == 4
    media = GOLDEN[name][turns]["ids"][span.start : span.start + span.length]
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepieces)
    assert pieces.id_to_piece(media) == ["<extra_id_4>", "<extra_id_3>", "<extra_id_3>", "<extra_id_5>"]
    assert list(prompt.ids) == training_ids(name, turns, prompt)


@pytest.mark.parametrize("name", list(GOLDEN))
def test_a_template_is_the_text_of_training(name: str) -> None:
    template = prompt_template(CONVERSATIONS[name], Family.NEVA, media_marks("nvgpt"), start_end=False)
    for turns, conversation in TURNS.items():
        parts = render(template, conversation)
        assert "".join(part if isinstance(part, str) else "<image>" for part in parts) == GOLDEN[name][turns]["text"]


def test_kept_marks_stand_around_the_media(sentencepieces: bytes, tmp_path: Path) -> None:
    dropped, kept = (served(convert(sentencepieces, "v1", start_end=keep), tmp_path, "one") for keep in (False, True))
    (span,) = kept.media
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepieces)
    around = [kept.ids[span.start - 1], kept.ids[span.start + span.length]]
    assert pieces.id_to_piece(around) == ["<extra_id_4>", "<extra_id_5>"]
    assert len(kept.ids) == len(dropped.ids) + 2


@pytest.mark.parametrize(
    ("model_type", "patch"),
    [("llama_3", "<|reserved_special_token_3|>"), ("vita", "<extra_id_3>"), ("v1", "<extra_id_3>")],
)
def test_the_pieces_of_media_follow_from_the_model_type(model_type: str, patch: str) -> None:
    assert media_marks(model_type).patch == patch


def test_the_end_of_a_sequence_ends_an_answer_and_is_not_text(sentencepieces: bytes, tmp_path: Path) -> None:
    """In these templates `<extra_id_7>` is id 2, as in training; elsewhere it is a piece of its own."""
    for name, expected in (("v1", 2), ("nvgpt", 10)):
        path = tmp_path / TOKENIZER_NAME
        path.write_bytes(convert(sentencepieces, name).files[TOKENIZER_NAME])
        tokenizer = Tokenizer(path, add_bos=False)
        stops = tokenizer.stop_ids(CONVERSATIONS[name].stop_strings)
        assert tokenizer.encode(["<extra_id_7>"]).ids == (expected,)
        assert expected in stops
    path.write_bytes(convert(sentencepieces, "v1").files[TOKENIZER_NAME])
    assert Tokenizer(path, add_bos=False).decode([*tokenizer.encode(["red"]).ids, 2]) == "red"
