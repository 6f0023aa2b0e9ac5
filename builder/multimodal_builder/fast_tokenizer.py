"""From the files of a Hugging Face tokenizer, or of GPT-2's, to the `tokenizer.json` that is served."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.tokenizer import ConvertedTokenizer, check_pieces, check_prompts, count_time_tokens
from multimodal_recipes.tokenizer import TOKENIZER_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multimodal_builder.tokenizer import Usage

FAST_NAME: Final = TOKENIZER_NAME
CONFIG_NAME: Final = "tokenizer_config.json"
SPECIALS_NAME: Final = "special_tokens_map.json"
VOCAB_NAME: Final = "vocab.json"
MERGES_NAME: Final = "merges.txt"

NAMED: Final = ("bos_token", "eos_token", "unk_token", "pad_token")
END_OF_TEXT: Final = "<|endoftext|>"
"""GPT-2's one special token, for all purposes."""
_TIME: Final = re.compile(r"<t\d+>")


@dataclass(frozen=True, slots=True)
class _Original:
    """The tokenizer as training used it: NeMo adds no tokens in front of a text or behind it."""

    tokenizer: Tokenizer
    writer: Tokenizer
    """The same, for texts of users: what stands for a sequence's ends is none, as with SentencePiece."""
    replaced: Mapping[int, int]

    def encode(self, text: str) -> list[int]:
        ids = self.writer.encode(text, add_special_tokens=False).ids
        return [self.replaced.get(token, token) for token in ids]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def piece_id(self, piece: str) -> int | None:
        found: int | None = self.tokenizer.token_to_id(piece)
        return found


def convert_fast(content: Mapping[str, bytes], added: tuple[str, ...], usage: Usage, *, at: str) -> ConvertedTokenizer:
    """Convert a tokenizer that has a `tokenizer.json`.

    Args:
        content: Its files by name.
        added: Special tokens that training added to it.
        usage: The checkpoint's.
        at: What to call it in an error.

    Raises:
        ProductError: a file is damaged, there is no end-of-sequence token, or the result has other ids.
    """
    try:
        tokenizer = Tokenizer.from_buffer(content[FAST_NAME])
    except Exception as error:  # tokenizers raises Exception itself
        raise unreadable(f"{at}: {FAST_NAME}", f"no tokenizer: {error}") from error
    settings = _object(content, SPECIALS_NAME, at) | _object(content, CONFIG_NAME, at)
    named = {name: text for name in NAMED if (text := _text(settings.get(name))) is not None}
    # As transformers does when it loads the tokenizer: both files may name tokens that the other lacks.
    tokenizer.add_tokens(_listed(settings.get("added_tokens_decoder"), at))
    tokenizer.add_special_tokens([_added(token) for token in dict.fromkeys(named.values())])
    return _convert(tokenizer, named, (*_more(settings), *added), usage, at)


def convert_gpt2(content: Mapping[str, bytes], added: tuple[str, ...], usage: Usage, *, at: str) -> ConvertedTokenizer:
    """Convert GPT-2's vocabulary and merges; arguments and errors are those of `convert_fast`."""
    try:
        vocab = {str(piece): int(number) for piece, number in json.loads(content[VOCAB_NAME]).items()}
        lines = content[MERGES_NAME].decode().splitlines()
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        tokenizer = Tokenizer(BPE(vocab, [(left, right) for left, right in pairs]))
    except KeyError as error:
        raise config_error(at, f"{error.args[0]} is missing", "copy all files of the tokenizer there") from error
    except Exception as error:  # damaged in any way: tokenizers raises Exception itself
        raise unreadable(at, f"no vocabulary with merges of GPT-2's kind: {error}") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_added(END_OF_TEXT)])
    return _convert(tokenizer, dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT), added, usage, at)


def _convert(
    tokenizer: Tokenizer, named: Mapping[str, str], added: tuple[str, ...], usage: Usage, at: str
) -> ConvertedTokenizer:
    tokenizer.add_special_tokens([_added(token) for token in added])
    document = json.loads(tokenizer.to_str())
    known = {tokenizer.token_to_id(piece): number for piece, number in usage.replaced.items()}
    replaced = {old: new for old, new in known.items() if old is not None}
    document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] not in replaced.values()]
    if replaced and not isinstance(document["model"]["vocab"], dict):
        raise config_error(
            at,
            f"a {document['model']['type']} model, in which {' and '.join(usage.replaced)} cannot have other ids",
            "use the tokenizer the model was trained with",
        )
    writer = Tokenizer.from_str(json.dumps(document)) if replaced else tokenizer
    original = _Original(tokenizer, writer, replaced)
    patch = check_pieces(original, usage, at)
    names = _exchanged(tokenizer, replaced)
    serialised = json.dumps(_served(document, names), ensure_ascii=False).encode()
    ids = {name: number for name, text in named.items() if (number := tokenizer.token_to_id(text)) is not None}
    eos = ids.get("eos_token")
    if eos is None:
        raise config_error(at, "it has no end-of-sequence token", f"correct eos_token in {CONFIG_NAME}")
    return ConvertedTokenizer(
        files={
            TOKENIZER_NAME: serialised,
            CONFIG_NAME: _settings({name: names.get(number, named[name]) for name, number in ids.items()}, usage),
        },
        template=usage.template,
        vocab_size=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        bos=ids.get("bos_token"),
        eos=eos,
        media_patch=patch,
        time_tokens=count_time_tokens(original),
        prompt_tokens=check_prompts(serialised, original, usage, usage.template, at),
    )


def _exchanged(tokenizer: Tokenizer, replaced: Mapping[int, int]) -> dict[int, str]:
    """Name ids anew: the new one of a pair as the old one, and the old one as nothing that is ever found in a text."""
    names: dict[int, str] = {}
    for old, new in replaced.items():
        names[new] = tokenizer.id_to_token(old) or ""
        names[old] = f"\0{names[new]}"
    return names


def _served(document: dict[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """Rewrite `tokenizer.json`: other names for some ids, and times kept in an answer's text."""
    tokens = [{**token, "content": names.get(token["id"], token["content"])} for token in document["added_tokens"]]
    found = {token["id"] for token in tokens}
    tokens += [_entry(number, piece) for number, piece in names.items() if number not in found]
    kept = [{**token, "special": token["special"] and not _TIME.fullmatch(token["content"])} for token in tokens]
    document = {**document, "added_tokens": sorted(kept, key=lambda token: token["id"])}
    if not names:
        return document
    vocab = {names.get(number, piece): number for piece, number in document["model"]["vocab"].items()}
    # A post-processor may name tokens that have other names now; nothing is added to a prompt.
    return {**document, "model": {**document["model"], "vocab": vocab}, "post_processor": None}


def _entry(number: int, piece: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": piece, **flags, "special": True}


def _added(token: str) -> AddedToken:
    return AddedToken(token, normalized=False, special=True)


def _settings(named: Mapping[str, str], usage: Usage) -> bytes:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": usage.positions,
        **named,
    }
    return json.dumps(settings, indent=2, ensure_ascii=False).encode()


def _object(content: Mapping[str, bytes], name: str, at: str) -> dict[str, Any]:
    try:
        document = json.loads(content.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise unreadable(f"{at}: {name}", f"not JSON: {error}") from error
    return document if isinstance(document, dict) else {}


def _listed(tokens: object, at: str) -> list[AddedToken]:
    """Read the tokens that `tokenizer_config.json` lists by id.

    Raises:
        ProductError: an entry is none.
    """
    if not isinstance(tokens, dict):
        return []
    try:
        ordered = sorted(tokens.items(), key=lambda entry: int(entry[0]))
        return [AddedToken(**{str(key): value for key, value in fields.items()}) for _, fields in ordered]
    except (ValueError, TypeError, AttributeError) as error:
        raise unreadable(f"{at}: {CONFIG_NAME}", f"added_tokens_decoder is damaged: {error}") from error


def _more(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Give the special tokens without a purpose of their own; transformers called them by two names."""
    lists = (settings.get(name) for name in ("additional_special_tokens", "extra_special_tokens"))
    tokens = (_text(token) for found in lists if isinstance(found, list) for token in found)
    return tuple(token for token in tokens if token is not None)


def _text(token: object) -> str | None:
    """Give a token's text: files hold it alone, or with its settings."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
