"""NeMo's tiktoken vocabularies: ids against byte pairs joined by hand on pieces that another library cut."""

from __future__ import annotations

import base64
import json
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import regex
from tokenizers import Tokenizer

from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_builder import tiktoken_tokenizer
from multimodal_builder.checkpoints.speech_config import SpeechSection
from multimodal_builder.salm import prompt_template
from multimodal_builder.templates import CONVERSATIONS, media_marks
from multimodal_builder.templates import prompt_template as visual_template
from multimodal_builder.tiktoken_tokenizer import convert_tiktoken
from multimodal_builder.tokenizer import SAMPLES, Usage

if TYPE_CHECKING:
    from multimodal_builder.tokenizer import ConvertedTokenizer

SPECIAL, SIZE = 20, 20 + 256 + 200

# As NeMo has it in `PATTERN_TIKTOKEN`, in one piece.
WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = (
    *SAMPLES,
    "How many?\n\n\n  There aren't CamelCaseWords; <unk> </s> <SPECIAL_9>  \r\n x",
    " \t ",
    "a\u0301 e\u0301\u00c0B \u01c5x",
)


@cache
def strings() -> list[bytes]:
    """Single bytes, then the most frequent neighbours of some text, again and again."""
    found = [bytes([byte]) for byte in range(256)]
    pieces = [[bytes([byte]) for byte in piece.encode()] for text in TEXTS * 2 for piece in regex.findall(WORDS, text)]
    while len(found) < SIZE - SPECIAL:
        pairs = Counter(left + right for piece in pieces for left, right in pairwise(piece))
        new = next(pair for pair, _ in pairs.most_common() if pair not in found)
        found.append(new)
        pieces = [join(piece, new) for piece in pieces]
    return found


def join(parts: list[bytes], new: bytes) -> list[bytes]:
    done: list[bytes] = []
    for part in parts:
        if done and done[-1] + part == new:
            done[-1] = new
        else:
            done.append(part)
    return done


def by_hand(text: str) -> list[int]:
    known = {string: rank for rank, string in enumerate(strings())}
    ids = []
    for piece in regex.findall(WORDS, text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while joins := [(known[a + b], n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in known]:
            at = min(joins)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [SPECIAL + known[part] for part in parts]
    return ids


def vocabulary(texts: list[bytes] | None = None, **changes: Any) -> bytes:
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(text).decode(), "token_str": ""} | changes
        for rank, text in enumerate(strings() if texts is None else texts)
    ]
    return json.dumps(entries).encode()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken_tokenizer, "SPECIAL_SIZE", SPECIAL)
    monkeypatch.setattr(tiktoken_tokenizer, "VOCAB_SIZE", SIZE)


def speech() -> Usage:
    return Usage(template=prompt_template(SpeechSection(), "x"), marks=None, positions=512)


def convert(data: bytes) -> ConvertedTokenizer:
    return convert_tiktoken(data, speech(), at="x.nemo: tokenizer.vocab_file")


@pytest.fixture(scope="module")
def converted() -> ConvertedTokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken_tokenizer, "SPECIAL_SIZE", SPECIAL)
        patch.setattr(tiktoken_tokenizer, "VOCAB_SIZE", SIZE)
        return convert(vocabulary())


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_ids_are_those_of_joining_by_hand(converted: ConvertedTokenizer, text: str) -> None:
    tokenizer = Tokenizer.from_buffer(converted.files["tokenizer.json"])
    assert tokenizer.encode(text).ids == by_hand(text)
    assert tokenizer.decode(by_hand(text)) == text


def test_special_tokens_stand_in_front_and_are_no_text(converted: ConvertedTokenizer) -> None:
    tokenizer = Tokenizer.from_buffer(converted.files["tokenizer.json"])
    assert (converted.vocab_size, converted.bos, converted.eos) == (SIZE, 1, 2)
    assert [tokenizer.token_to_id(piece) for piece in ("<unk>", "<s>", "</s>", "<SPECIAL_19>")] == [0, 1, 2, 19]
    assert min(tokenizer.encode("<s></s><unk><SPECIAL_19>").ids) >= SPECIAL
    assert json.loads(converted.files["tokenizer_config.json"]).items() >= {"eos_token": "</s>"}.items()


def test_a_byte_string_may_be_written_as_a_special_token() -> None:
    texts = [*strings()[:-6], b"<m", b"<ma", b"<mas", b"<mask", b"<mask>", b"zzz"]
    tokenizer = Tokenizer.from_buffer(convert(vocabulary(texts)).files["tokenizer.json"])
    assert tokenizer.token_to_id("<mask>") == SIZE - 2
    assert tokenizer.id_to_token(3) == "\0<mask>"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lambda: b"{", "no vocabulary of byte strings"),
        (lambda: b'[{"rank": 0}]', "no vocabulary of byte strings"),
        (lambda: vocabulary(token_bytes="?"), "no vocabulary of byte strings"),  # noqa: S106
        (lambda: vocabulary(rank=0), "in order of their ranks"),
        (lambda: vocabulary([*strings()[:-1], b"a"]), "in order of their ranks"),
        (lambda: vocabulary(strings()[::-1]), "in order of their ranks"),
        (lambda: vocabulary(strings()[:-1]), "455 byte strings, where NeMo takes 456"),
    ],
)  # fmt: skip
def test_what_is_no_such_vocabulary_is_refused(data: Any, says: str) -> None:
    with pytest.raises(ProductError, match=says):
        convert(data())


def test_a_model_that_sees_needs_pieces_that_no_text_has() -> None:
    marks = media_marks("nvgpt")
    template = visual_template(CONVERSATIONS["v1"], Family.NEVA, marks, start_end=False)
    with pytest.raises(ProductError, match="lacks the piece"):
        convert_tiktoken(vocabulary(), Usage(template=template, marks=marks, positions=512), at="x")
