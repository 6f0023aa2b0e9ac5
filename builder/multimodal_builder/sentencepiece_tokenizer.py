"""From a SentencePiece model to `tokenizer.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.sentencepiece_model import ModelKind, PieceKind, SentencePieceModel, parse
from multimodal_builder.tokenizer import (
    SAMPLES,
    ConvertedTokenizer,
    check_pieces,
    check_prompts,
    count_time_tokens,
    differs,
)
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
    model, processor = _open(data, at)
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


def llama_tokenizer(data: bytes, added: Mapping[int, AddedToken], *, add_bos: bool, at: str) -> Tokenizer:
    """Make of a model file what transformers' `LlamaTokenizer` is (`legacy=False`).

    Unlike NeMo, it finds `<s>` and its kind in any text.

    Args:
        data: The model file.
        added: Tokens behind the model's pieces, by id; ones of the model are named too.
        add_bos: Whether the beginning of a sequence is put in front of every text.
        at: What to call the file in an error.

    Raises:
        ProductError: it is no model, one of an unknown kind, or the ids of added tokens leave gaps.
    """
    model, processor = _open(data, at)
    tokenizer = _assemble(model, special=frozenset())
    space = " " if model.add_dummy_prefix else ""  # `tokenizer.json` adds none to one that stands there
    for text in SAMPLES:
        wanted, found = processor.encode(text), tokenizer.encode(space + text).ids
        if wanted != found:
            raise differs(at, text, wanted, found)
    tokenizer.add_special_tokens([
        AddedToken(piece.text, normalized=False, special=True)
        for piece in model.pieces
        if piece.kind in {PieceKind.CONTROL, PieceKind.UNKNOWN}
    ])  # fmt: skip
    for number, token in sorted(added.items()):
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != number:
            problem = f"{token.content} is not its token {number}"
            raise config_error(at, problem, "copy all files of the tokenizer there")
    bos = int(processor.bos_id())
    if add_bos and bos >= 0:
        piece = model.pieces[bos].text
        tokenizer.post_processor = processors.TemplateProcessing(f"{piece} $A", f"{piece} $A $B", [(piece, bos)])
    return tokenizer


def named_pieces(data: bytes, at: str) -> dict[str, str]:
    """Give the pieces for the beginning and the end of a sequence and for what is unknown, under transformers' names.

    Raises:
        ProductError: it is no model.
    """
    model, processor = _open(data, at)
    return _named(processor, model)


def _named(processor: sentencepiece.SentencePieceProcessor, model: SentencePieceModel) -> dict[str, str]:
    named = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
    return {name: model.pieces[number].text for name, number in named.items() if number >= 0}


def _open(data: bytes, at: str) -> tuple[SentencePieceModel, sentencepiece.SentencePieceProcessor]:
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
    return model, processor


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
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": positions,
        **_named(processor, model),
    }
    return json.dumps(settings, indent=2, ensure_ascii=False).encode()
