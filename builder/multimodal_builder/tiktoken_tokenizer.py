"""From the vocabulary of NeMo's `TiktokenTokenizer` to `tokenizer.json`.

The file lists byte strings by rank. Text is cut by one pattern; the bytes of a piece are joined, the pair of the lowest
rank first. Ids of byte strings stand behind those of special tokens, which no text has: NeMo encodes `<s>` as any other
text. Numbers and pattern are NeMo's own (`nemo/collections/common/tokenizers/tiktoken_tokenizer.py`).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.tokenizer import ConvertedTokenizer, check_pieces, check_prompts, count_time_tokens
from multimodal_recipes.tokenizer import TOKENIZER_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from multimodal_builder.tokenizer import Usage

VOCAB_SIZE: Final = 2**17
"""Ids in all."""
SPECIAL_SIZE: Final = 1000
"""Ids in front, of special tokens."""
NAMED: Final = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<cls>", "<sep>")
"""The first of them; the others are `<SPECIAL_7>` and so on."""
BOS, EOS, UNKNOWN = NAMED.index("<s>"), NAMED.index("</s>"), NAMED.index("<unk>")

_UPPER: Final = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER: Final = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_AHEAD: Final = r"[^\r\n\p{L}\p{N}]?"
PATTERN: Final = "|".join((
    rf"{_AHEAD}[{_UPPER}]*[{_LOWER}]+",
    rf"{_AHEAD}[{_UPPER}]+[{_LOWER}]*",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
))  # fmt: skip

_VISIBLE: Final = (*range(33, 127), *range(161, 173), *range(174, 256))
_HIDDEN: Final = tuple(byte for byte in range(256) if byte not in _VISIBLE)
LETTERS: Final = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(256 + n) for n, byte in enumerate(_HIDDEN)}
"""How `tokenizer.json` writes a byte: as a letter, GPT-2's table."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    rank: Annotated[int, Field(ge=0)]
    token_bytes: str


_ENTRIES: Final = TypeAdapter(list[_Entry])


@dataclass(frozen=True, slots=True)
class _Original:
    """The tokenizer as training used it."""

    ranks: Mapping[bytes, int]
    strings: Sequence[bytes]
    splitter: pre_tokenizers.PreTokenizer

    def encode(self, text: str) -> list[int]:
        pieces = (piece for piece, _ in self.splitter.pre_tokenize_str(text))
        return [SPECIAL_SIZE + rank for piece in pieces for rank in _joined(piece.encode(), self.ranks)]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.strings[number - SPECIAL_SIZE] for number in ids).decode(errors="replace")

    def piece_id(self, piece: str) -> int | None:
        return NAMED.index(piece) if piece in NAMED else None


def convert_tiktoken(data: bytes, usage: Usage, *, at: str) -> ConvertedTokenizer:
    """Convert such a vocabulary.

    Args:
        data: The JSON file.
        usage: The checkpoint's.
        at: What to call the file in an error.

    Raises:
        ProductError: it is no such vocabulary, or a prompt needs a token that no text can have.
    """
    strings = _read(data, at)
    ranks = {text: rank for rank, text in enumerate(strings)}
    splitter = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    original = _Original(ranks, strings, splitter)
    patch = check_pieces(original, usage, at)
    serialised = _assemble(ranks, splitter).to_str().encode()
    return ConvertedTokenizer(
        files={TOKENIZER_NAME: serialised, "tokenizer_config.json": _settings(usage)},
        template=usage.template,
        vocab_size=VOCAB_SIZE,
        bos=BOS,
        eos=EOS,
        media_patch=patch,
        time_tokens=count_time_tokens(original),
        prompt_tokens=check_prompts(serialised, original, usage, usage.template, at),
    )


def _read(data: bytes, at: str) -> list[bytes]:
    """Read the byte strings in the order of their ranks, as many as NeMo takes."""
    try:
        entries = _ENTRIES.validate_json(data)[: VOCAB_SIZE - SPECIAL_SIZE]
        strings = [base64.b64decode(entry.token_bytes, validate=True) for entry in entries]
    except (ValidationError, ValueError) as error:
        raise unreadable(at, f"no vocabulary of byte strings: {str(error)[:200]}") from error
    ordered = all(entry.rank == place for place, entry in enumerate(entries))
    if not ordered or len(set(strings)) != len(strings) or strings[:256] != [bytes([byte]) for byte in range(256)]:
        raise unreadable(at, "its entries are not in order of their ranks, single bytes first, each once")
    if len(strings) < VOCAB_SIZE - SPECIAL_SIZE:
        raise config_error(
            at,
            f"{len(strings)} byte strings, where NeMo takes {VOCAB_SIZE - SPECIAL_SIZE}",
            "use the vocabulary the model was trained with",
        )
    return strings


def _joined(text: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Join the bytes of a piece, the pair of the lowest rank first."""
    if text in ranks:
        return [ranks[text]]
    parts = [text[place : place + 1] for place in range(len(text))]
    while True:
        known = [(ranks[pair], place) for place in range(len(parts) - 1) if (pair := _pair(parts, place)) in ranks]
        if not known:
            return [ranks[part] for part in parts]
        _, place = min(known)
        parts[place : place + 2] = [_pair(parts, place)]


def _pair(parts: Sequence[bytes], place: int) -> bytes:
    return parts[place] + parts[place + 1]


def _assemble(ranks: Mapping[bytes, int], splitter: pre_tokenizers.PreTokenizer) -> Tokenizer:
    vocab = {_letters(text): SPECIAL_SIZE + rank for text, rank in ranks.items()}
    for number in range(SPECIAL_SIZE):
        name = NAMED[number] if number < len(NAMED) else f"<SPECIAL_{number}>"
        # A byte string may be written so too; a name that begins with a zero byte is never made from text.
        vocab[f"\0{name}" if name in vocab else name] = number
    tokenizer = Tokenizer(BPE(vocab, list(_merges(ranks)), ignore_merges=True))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[str, str]]:
    """Every way to join two byte strings to a third, in the order of the third's rank."""
    for text in ranks:
        cuts = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [cut for cut in cuts if cut[0] in ranks and cut[1] in ranks]
        for left, right in sorted(known, key=lambda cut: (ranks[cut[0]], ranks[cut[1]])):
            yield _letters(left), _letters(right)


def _letters(text: bytes) -> str:
    return "".join(map(LETTERS.__getitem__, text))


def _settings(usage: Usage) -> bytes:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": usage.positions,
        "bos_token": NAMED[BOS],
        "eos_token": NAMED[EOS],
        "unk_token": NAMED[UNKNOWN],
    }
    return json.dumps(settings, indent=2, ensure_ascii=False).encode()
