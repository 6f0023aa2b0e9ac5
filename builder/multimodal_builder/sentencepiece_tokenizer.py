"""From a SentencePiece model to `tokenizer.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.sentencepiece_model import ModelKind, PieceKind, SentencePieceModel, parse
from multimodal_builder.tokenizer import ConvertedTokenizer, check_pieces, check_prompts, count_time_tokens
from multimodal_recipes.tokenizer import TOKENIZER_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from multimodal_builder.tokenizer import Usage

SPACE: Final = "\u2581"
"""SentencePiece's mark of a space."""


@dataclass(frozen=True, slots=True)
class _Original:
    """A SentencePiece model as training used it."""

    processor: sentencepiece.SentencePieceProcessor
    replaced: Mapping[int, int]

    def encode(self, text: str) -> list[int]:
        return [self.replaced.get(token, token) for token in self.processor.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.processor.decode(list(ids)))

    def piece_id(self, piece: str) -> int | None:
        found = int(self.processor.piece_to_id(piece))
        return None if found == self.processor.unk_id() else found


def convert_sentencepiece(data: bytes, usage: Usage, *, at: str) -> ConvertedTokenizer:
    """Convert a SentencePiece model.

    Args:
        data: The model file.
        usage: The checkpoint's.
        at: What to call the file in an error.

    Raises:
        ProductError: it is no model, one of an unknown kind, or one whose ids the result would not repeat.
    """
    model = parse(data, at)
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise unreadable(at, f"not a SentencePiece model: {error}") from error
    if model.whitespace_as_suffix or not model.escape_whitespaces or model.kind is not ModelKind.BPE:
        raise config_error(
            at,
            f"a {model.kind.name} model, or unusual rules for spaces",
            "use a BPE model with Llama's rules for spaces",
        )
    plain = _Original(processor, {})
    known = {piece: plain.piece_id(piece) for piece in usage.replaced}
    original = replace(plain, replaced={number: usage.replaced[piece] for piece, number in known.items() if number})
    patch = check_pieces(original, usage, at)
    model = _replace(model, original.replaced)
    serialised = _assemble(model, special=frozenset(original.replaced.values())).to_str().encode()
    # In serving, the text goes to `tokenizer.json` in one piece, which adds no second space to one that stands there.
    space = " " if model.add_dummy_prefix else ""
    served = usage.behind(space)
    bos = int(processor.bos_id())
    return ConvertedTokenizer(
        files={TOKENIZER_NAME: serialised, "tokenizer_config.json": _settings(processor, model, usage.positions)},
        template=served,
        vocab_size=processor.get_piece_size(),
        bos=bos if bos >= 0 else None,
        eos=_eos(processor, at),
        media_patch=patch,
        time_tokens=count_time_tokens(original),
        prompt_tokens=check_prompts(serialised, original, usage, served, at),
    )


def _replace(model: SentencePieceModel, replaced: Mapping[int, int]) -> SentencePieceModel:
    """Let pieces that training replaces by others stand at those others' ids, and the others at theirs."""
    pieces = list(model.pieces)
    for old, new in replaced.items():
        pieces[old], pieces[new] = pieces[new], pieces[old]
    return replace(model, pieces=tuple(pieces))


def _eos(processor: sentencepiece.SentencePieceProcessor, at: str) -> int:
    eos = int(processor.eos_id())
    if eos < 0:
        raise config_error(at, "it has no end-of-sequence piece", "use the tokenizer the model was trained with")
    return eos


def _bpe(model: SentencePieceModel) -> BPE:
    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    return BPE(
        ids,
        list(_merges(model)),
        unk_token=model.pieces[model.unk_id].text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _merges(model: SentencePieceModel) -> Iterator[tuple[str, str]]:
    """Every way to join two pieces to a third, best piece first: SentencePiece has no list of merges, only scores."""
    ids = {piece.text: number for number, piece in enumerate(model.pieces) if piece.kind is PieceKind.NORMAL}
    ranked = sorted(ids, key=lambda text: -model.pieces[ids[text]].score)
    for text in ranked:
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        yield from sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def _assemble(model: SentencePieceModel, *, special: frozenset[int]) -> Tokenizer:
    tokenizer = Tokenizer(_bpe(model))
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    undo: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix:
        # Only at the very beginning of a text, not behind each special piece.
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
        undo.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(undo)
    # User-defined pieces are found in any text. Control pieces (<s>, </s>) never are: nobody can write them. Special
    # ones have no text when ids are read back, as the pieces in whose place they stand.
    tokenizer.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=number in special)
            for number, piece in enumerate(model.pieces)
            if piece.kind is PieceKind.USER_DEFINED
        ]
    )
    return tokenizer


def _settings(processor: sentencepiece.SentencePieceProcessor, model: SentencePieceModel, positions: int) -> bytes:
    named = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": positions,
        **{name: model.pieces[number].text for name, number in named.items() if number >= 0},
    }
    return json.dumps(settings, indent=2, ensure_ascii=False).encode()
