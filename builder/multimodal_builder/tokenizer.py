"""From a SentencePiece model to `tokenizer.json`, and the proof that both give the same ids."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.sentencepiece_model import ModelKind, PieceKind, SentencePieceModel, parse
from multimodal_builder.templates import MEDIA_END, MEDIA_START
from multimodal_recipes.prompt import MediaSlot, Medium, Turn, render
from multimodal_recipes.tokenizer import TOKENIZER_NAME
from multimodal_recipes.tokenizer import Tokenizer as ServingTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from multimodal_api.errors import ProductError
    from multimodal_recipes.recipe import PromptTemplate

SPACE: Final = "\u2581"
"""SentencePiece's mark of a space."""

MEDIA_PATCH: Final = "<extra_id_3>"

SAMPLES: Final = (
    "Hi! What is in this image?",
    "How many red circles are there?\nAnswer in one word.",
    "  two  spaces, a\ttab and trailing ones  ",
    "1234567890 3.14159 (a+b)*c != {x: [y]} <b>bold</b> </s> <s>",
    "naïve café — Füße, Привет, 你好 世界, こんにちは, 🙂🙃",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
)
"""Texts that meet most of what tokenizers treat in different ways."""


@dataclass(frozen=True, slots=True)
class ConvertedTokenizer:
    """A tokenizer in Hugging Face's form."""

    files: dict[str, bytes]
    """For `llm/`."""
    template: PromptTemplate
    """The prompt, with the space in front that SentencePiece puts there."""
    vocab_size: int
    bos: int | None
    eos: int
    prompt_tokens: int
    """Length of the shortest prompt, without media."""


def convert_tokenizer(data: bytes, template: PromptTemplate, *, positions: int, at: str) -> ConvertedTokenizer:
    """Convert a SentencePiece model.

    Args:
        data: The model file.
        template: The prompt as the training's text has it.
        positions: Longest sequence of the model.
        at: What to call the file in an error.

    Raises:
        ProductError: it is no model, one of an unknown kind, or one whose ids the result would not repeat.
    """
    model = parse(data, at)
    try:
        reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise unreadable(at, f"not a SentencePiece model: {error}") from error
    for piece in (MEDIA_START, MEDIA_PATCH, MEDIA_END):
        if reference.piece_to_id(piece) == reference.unk_id():
            raise config_error(
                at,
                f"it lacks the piece {piece}",
                "use the tokenizer the model was trained with, with NeVA's media tokens",
            )
    if model.whitespace_as_suffix or not model.escape_whitespaces or model.kind is not ModelKind.BPE:
        raise config_error(
            at,
            f"a {model.kind.name} model, or unusual rules for spaces",
            "use a BPE model with Llama's rules for spaces",
        )
    serialised = _assemble(model).to_str().encode()
    # In serving, the text goes to `tokenizer.json` in one piece, which adds no second space to one that stands there.
    space = " " if model.add_dummy_prefix else ""
    served = template.model_copy(update={"before": space + template.before})
    shortest = _check(serialised, reference, template, served, at)
    return ConvertedTokenizer(
        files={TOKENIZER_NAME: serialised, "tokenizer_config.json": _settings(reference, positions)},
        template=served,
        vocab_size=reference.get_piece_size(),
        bos=reference.bos_id() if reference.bos_id() >= 0 else None,
        eos=_eos(reference, at),
        prompt_tokens=shortest,
    )


def _eos(reference: sentencepiece.SentencePieceProcessor, at: str) -> int:
    eos = int(reference.eos_id())
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


def _assemble(model: SentencePieceModel) -> Tokenizer:
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
    # User-defined pieces are found in any text. Control pieces (<s>, </s>) never are: nobody can write them.
    defined = [piece.text for piece in model.pieces if piece.kind is PieceKind.USER_DEFINED]
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in defined])
    return tokenizer


def _settings(reference: sentencepiece.SentencePieceProcessor, positions: int) -> bytes:
    named = {"bos_token": reference.bos_id(), "eos_token": reference.eos_id(), "unk_token": reference.unk_id()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": positions,
        **{name: reference.id_to_piece(number) for name, number in named.items() if number >= 0},
    }
    return json.dumps(settings, indent=2, ensure_ascii=False).encode()


def _check(
    serialised: bytes,
    reference: sentencepiece.SentencePieceProcessor,
    template: PromptTemplate,
    served: PromptTemplate,
    at: str,
) -> int:
    """Compare whole prompts, as training and as serving make them, and texts read back.

    Returns:
        The shortest prompt's length, without media.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, TOKENIZER_NAME)
        path.write_bytes(serialised)
        tokenizer = ServingTokenizer(path, add_bos=False)
    media = "".join(_MEDIA)  # three pieces, whose places three media rows take
    shortest = 0
    for text in ("", *SAMPLES):
        asked = Turn((Medium((MediaSlot(len(_MEDIA)),)), text))
        for turns in ((asked,), (replace(asked, answer=text), asked)):
            whole = "".join(part if isinstance(part, str) else media for part in render(template, turns))
            wanted = reference.encode(whole)
            prompt = tokenizer.encode(render(served, turns))
            found = list(prompt.ids)
            for span in prompt.media:
                found[span.start : span.start + span.length] = [reference.piece_to_id(piece) for piece in _MEDIA]
            if found != wanted:
                raise _differs(at, text, wanted, found)
            if tokenizer.decode(wanted) != reference.decode(wanted):
                raise _differs(at, text, reference.decode(wanted), tokenizer.decode(wanted))
            shortest = shortest or len(wanted) - prompt.media_length
    return shortest


_MEDIA: Final = (MEDIA_START, MEDIA_PATCH, MEDIA_END)


def _differs(at: str, text: str, wanted: Sequence[object], found: Sequence[object]) -> ProductError:
    both = enumerate(zip_longest(wanted, found))
    place, (right, wrong) = next((place, pair) for place, pair in both if pair[0] != pair[1])
    return config_error(
        at,
        f"its result for {text!r} cannot be repeated in Hugging Face's form: {wrong!r} instead of {right!r} at {place}",
        "report it with this tokenizer: its rules are not known to this version",
    )
