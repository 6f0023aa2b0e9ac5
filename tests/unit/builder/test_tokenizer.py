from __future__ import annotations

import io
import random
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.speech_config import SpeechSection
from multimodal_builder.salm import prompt_template as salm_template
from multimodal_builder.sentencepiece_tokenizer import convert_sentencepiece
from multimodal_builder.templates import CONVERSATIONS, SEQUENCE_MARKS, media_marks, prompt_template
from multimodal_builder.tokenizer import SAMPLES, ConvertedTokenizer, Usage
from multimodal_recipes.prompt import MediaSlot, Medium, Turn, render
from multimodal_recipes.tokenizer import TOKENIZER_NAME, Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

SPECIALS = tuple(f"<extra_id_{number}>" for number in range(10))
LLAMA: dict[str, Any] = {"add_dummy_prefix": True, "user_defined_symbols": SPECIALS}
NVGPT: dict[str, Any] = {"add_dummy_prefix": False, "user_defined_symbols": (*SPECIALS, "\n")}
T5: dict[str, Any] = {**LLAMA, "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}


def train(**options: Any) -> bytes:
    return _train(tuple(sorted(options.items())))


@cache
def _train(options: tuple[tuple[str, Any], ...]) -> bytes:
    rng = random.Random(0)  # noqa: S311 (sentences to train on)
    words = [
        "the",
        "red",
        "blue",
        "circle",
        "square",
        "how",
        "many",
        "are",
        "there",
        "what",
        "is",
        "in",
        "image",
        "left",
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(rng.choices(words, k=6)) + "?" for _ in range(500)]),
        model_writer=model,
        **{
            "model_type": "bpe",
            "vocab_size": 330,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "minloglevel": 2,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in options},
        },
    )
    return model.getvalue()


def usage(template: str = "v1", *, start_end: bool = False) -> Usage:
    conversation, marks = CONVERSATIONS[template], media_marks("nvgpt")
    return Usage(
        template=prompt_template(conversation, Family.NEVA, marks, start_end=start_end),
        marks=marks,
        positions=2048,
        replaced=SEQUENCE_MARKS if conversation.sequence_marks else {},
    )


def convert(data: bytes, template: str = "v1", *, start_end: bool = False) -> ConvertedTokenizer:
    return convert_sentencepiece(data, usage(template, start_end=start_end), at="x.nemo: tokenizer.model")


@pytest.mark.parametrize("start_end", [False, True])
@pytest.mark.parametrize("template", sorted(CONVERSATIONS))
@pytest.mark.parametrize("options", [LLAMA, NVGPT], ids=["llama", "nvgpt"])
def test_prompts_have_the_ids_of_training(options: dict[str, Any], template: str, *, start_end: bool) -> None:
    """The conversion itself compares every sample; here it must find nothing to complain about."""
    converted = convert(train(**options), template, start_end=start_end)
    assert (converted.vocab_size, converted.bos, converted.eos) == (330, 1, 2)
    assert converted.prompt_tokens > 0


@pytest.mark.parametrize("options", [LLAMA, NVGPT], ids=["llama", "nvgpt"])
def test_a_question_behind_a_sound_has_the_ids_of_training(options: dict[str, Any], tmp_path: Path) -> None:
    """Training tokenises the question alone: it begins as a text does, although rows stand in front of it."""
    data, template = train(**options), salm_template(SpeechSection(), "x.nemo")
    converted = convert_sentencepiece(data, Usage(template=template, marks=None, positions=2048), at="x.nemo")
    path = tmp_path / TOKENIZER_NAME
    path.write_bytes(converted.files[TOKENIZER_NAME])
    asked = Turn((Medium((MediaSlot(5),)), "how many?"))
    prompt = Tokenizer(path, add_bos=False).encode(render(converted.template, (asked,)))
    wanted = sentencepiece.SentencePieceProcessor(model_proto=data).encode("Q: how many?\nA:")
    assert (list(prompt.ids[5:]), prompt.media[0].start) == (wanted, 0)
    assert converted.media_patch is None


@pytest.fixture(scope="module", params=[LLAMA, NVGPT], ids=["llama", "nvgpt"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor, str]:
    """A converted tokenizer, its original, and the space that the template carries for it.

    Its conversation has no sequence marks, whose ids training replaces.
    """
    data = train(**request.param)
    path = tmp_path_factory.mktemp("tokenizer") / TOKENIZER_NAME
    path.write_bytes(convert(data, "nvgpt").files[TOKENIZER_NAME])
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    return Tokenizer(path, add_bos=False), reference, " " if request.param is LLAMA else ""


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0\u2581"), max_size=40))
@example(text="".join(SPECIALS))
def test_any_text_has_sentencepieces_ids(
    pair: tuple[Tokenizer, sentencepiece.SentencePieceProcessor, str], text: str
) -> None:
    tokenizer, reference, space = pair
    wanted = reference.encode(text)
    if text:
        assert list(tokenizer.encode([space + text]).ids) == wanted
    assert tokenizer.decode(wanted) == reference.decode(wanted)


def test_nobody_can_write_a_control_piece(tmp_path: Path) -> None:
    path = tmp_path / TOKENIZER_NAME
    path.write_bytes(convert(train(**NVGPT)).files[TOKENIZER_NAME])
    assert not {1, 2} & set(Tokenizer(path, add_bos=False).encode(["a </s> b <s>"]).ids)


def test_normalising_models_are_converted_where_the_result_is_the_same() -> None:
    assert convert(train(**T5), "v1").vocab_size == 330


@pytest.mark.parametrize(
    ("data", "reason", "says"),
    [
        (lambda: b"", Reason.CHECKPOINT_UNREADABLE, "SentencePiece"),
        (lambda: b"\xff" * 50, Reason.CHECKPOINT_UNREADABLE, "not a SentencePiece model"),
        (lambda: train(**LLAMA)[:-100], Reason.CHECKPOINT_UNREADABLE, "not a SentencePiece model"),
        (lambda: train(**{**LLAMA, "user_defined_symbols": SPECIALS[:3]}), Reason.CHECKPOINT_CONFIG, "<extra_id_4>"),
        (lambda: train(**{**LLAMA, "model_type": "unigram", "vocab_size": 300}), Reason.CHECKPOINT_CONFIG, "UNIGRAM"),
        (lambda: train(**LLAMA, eos_id=-1), Reason.CHECKPOINT_CONFIG, "no end-of-sequence"),
        (lambda: train(**LLAMA, treat_whitespace_as_suffix=True), Reason.CHECKPOINT_CONFIG, "spaces"),
    ],
)
def test_a_tokenizer_that_cannot_be_repeated_is_refused(data: Any, reason: Reason, says: str) -> None:
    with pytest.raises(ProductError, match=says) as caught:
        convert(data())
    assert caught.value.failure.reason is reason
    assert caught.value.failure.at == "x.nemo: tokenizer.model"


def test_a_difference_is_found_and_shown() -> None:
    """A normalising model changes what stands around NeVA's turn marks in a way Hugging Face's form does not repeat."""
    with pytest.raises(ProductError, match="cannot be repeated"):
        convert(train(**T5), "nv_dpo")


def test_samples_hold_what_tokenizers_treat_in_different_ways() -> None:
    text = "".join(SAMPLES)
    assert all(part in text for part in ("  ", "\t", "\n", "</s>", "🙂", "ü", "世", "1234"))
