"""The files of a checkpoint's tokenizer, wherever `tokenizer.library` says that they lie."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.huggingface import find_folder
from multimodal_builder.checkpoints.nemo2 import TOKENIZER_FOLDER
from multimodal_builder.fast_tokenizer import (
    CONFIG_NAME,
    FAST_NAME,
    MERGES_NAME,
    SPECIALS_NAME,
    VOCAB_NAME,
    convert_fast,
    convert_gpt2,
)
from multimodal_builder.sentencepiece_tokenizer import convert_sentencepiece
from multimodal_builder.tiktoken_tokenizer import convert_tiktoken

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from multimodal_builder.checkpoints.checkpoint import Checkpoint
    from multimodal_builder.checkpoints.config import LanguageConfig
    from multimodal_builder.tokenizer import ConvertedTokenizer, Usage

SENTENCEPIECE_NAME: Final = "tokenizer.model"
TIKTOKEN_NAME: Final = "tiktoken.json"
"""Hugging Face has no name for it."""
GPT_SENTENCEPIECE: Final = "GPTSentencePieceTokenizer"
"""`tokenizer.type` of the library megatron that means a SentencePiece model."""

_LIMIT: Final = 64 * 2**20
"""Bytes of one file; those of the largest vocabularies have half as many."""


class TokenizerFiles(NamedTuple):
    """What a tokenizer is made of."""

    at: str
    """What to call it in an error."""
    content: Mapping[str, bytes]
    """By Hugging Face's names, whatever the files are called where they lie."""


def read_tokenizer(checkpoint: Checkpoint[LanguageConfig]) -> TokenizerFiles:
    """Read a tokenizer's files.

    Raises:
        ProductError: there are none, or not those that the library needs.
    """
    settings = checkpoint.config.tokenizer
    read = _LIBRARIES.get("sentencepiece" if settings.type == GPT_SENTENCEPIECE else settings.library)
    if read is None:
        raise config_error(
            f"{checkpoint.config_at}: tokenizer.library",
            f"is {settings.library!r}, but this version reads {', '.join(_LIBRARIES)}",
            "use a checkpoint with a tokenizer of one of these libraries",
        )
    return read(checkpoint)


def convert_tokenizer(files: TokenizerFiles, added: tuple[str, ...], usage: Usage) -> ConvertedTokenizer:
    """Convert a tokenizer.

    Args:
        files: Of the tokenizer.
        added: Special tokens that training added to it.
        usage: The checkpoint's.

    Raises:
        ProductError: it is of no known kind, or its ids would not be those of training.
    """
    return replace(_convert(files, added, usage), sources=tuple(files.content.values()))


def _convert(files: TokenizerFiles, added: tuple[str, ...], usage: Usage) -> ConvertedTokenizer:
    content = files.content
    if FAST_NAME in content:
        return convert_fast(content, added, usage, at=files.at)
    if VOCAB_NAME in content:
        return convert_gpt2(content, added, usage, at=files.at)
    if TIKTOKEN_NAME in content:
        return convert_tiktoken(content[TIKTOKEN_NAME], usage, at=files.at)
    if added:
        raise config_error(
            f"{files.at}: additional_special_tokens",
            f"{', '.join(added)} are added to a SentencePiece model, which is not implemented",
            "add them to the model file with NeMo's add_special_tokens_to_sentencepiece.py",
        )
    return convert_sentencepiece(content[SENTENCEPIECE_NAME], usage, at=files.at)


def _sentencepiece(checkpoint: Checkpoint[LanguageConfig]) -> TokenizerFiles:
    model = checkpoint.artifact("tokenizer.model", checkpoint.config.tokenizer.model)
    return TokenizerFiles(f"{checkpoint.at}: tokenizer.model", {SENTENCEPIECE_NAME: model})


def _tiktoken(checkpoint: Checkpoint[LanguageConfig]) -> TokenizerFiles:
    key = "tokenizer.vocab_file"
    content = checkpoint.artifact(key, checkpoint.config.tokenizer.vocab_file)
    return TokenizerFiles(f"{checkpoint.at}: {key}", {TIKTOKEN_NAME: content})


def _megatron(checkpoint: Checkpoint[LanguageConfig]) -> TokenizerFiles:
    settings = checkpoint.config.tokenizer
    return TokenizerFiles(
        f"{checkpoint.at}: tokenizer.vocab_file",
        {
            VOCAB_NAME: checkpoint.artifact("tokenizer.vocab_file", settings.vocab_file),
            MERGES_NAME: checkpoint.artifact("tokenizer.merge_file", settings.merge_file),
        },
    )


def _huggingface(checkpoint: Checkpoint[LanguageConfig]) -> TokenizerFiles:
    members = checkpoint.members
    inside = {name: TOKENIZER_FOLDER + name for name in _WANTED if TOKENIZER_FOLDER + name in members.names()}
    if inside:
        content = {name: members.open(member).read(_LIMIT) for name, member in inside.items()}
        return TokenizerFiles(f"{checkpoint.at}: {TOKENIZER_FOLDER}", content)
    named = checkpoint.config.tokenizer.type
    key = "tokenizer.type"
    if named is None:
        raise config_error(
            f"{checkpoint.config_at}: {key}", "is missing", "name the folder of the tokenizer beside the checkpoint"
        )
    folder = find_folder(named, checkpoint.path, None, key=key, holding=(FAST_NAME, VOCAB_NAME))
    try:
        found = [name for name in _WANTED if (folder.path / name).is_file()]
        return TokenizerFiles(str(folder.path.name), {name: folder.file(name).read(_LIMIT) for name in found})
    finally:
        folder.close()


_WANTED: Final = (FAST_NAME, CONFIG_NAME, SPECIALS_NAME, VOCAB_NAME, MERGES_NAME)
_LIBRARIES: Final[dict[str, Callable[[Checkpoint[LanguageConfig]], TokenizerFiles]]] = {
    "sentencepiece": _sentencepiece,
    "huggingface": _huggingface,
    "megatron": _megatron,
    "tiktoken": _tiktoken,
}
