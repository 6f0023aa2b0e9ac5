"""The tokenizer of a Hugging Face model: carried over as it is, with the conversation that it was made for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tokenizers import Tokenizer

from multimodal_builder.chat_template import plain_template, read_template
from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.tokenizer import PICTURE, SAMPLES, ConvertedTokenizer
from multimodal_recipes.prompt import Turn, render
from multimodal_recipes.tokenizer import TOKENIZER_NAME

if TYPE_CHECKING:
    from multimodal_api.families import Family
    from multimodal_builder.checkpoints.huggingface import HuggingFaceFolder
    from multimodal_recipes.recipe import PromptTemplate

SETTINGS: Final = "tokenizer_config.json"
GENERATION: Final = "generation_config.json"
TEMPLATES: Final = ("chat_template.json", "processor_config.json", SETTINGS)
"""Files that may hold a `chat_template`, as transformers looks for it; before them comes `chat_template.jinja`."""
_JINJA: Final = "chat_template.jinja"
_LIMIT: Final = 64 * 2**20
_NAMED: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "image_token")


@dataclass(frozen=True, slots=True)
class FolderTokenizer:
    """What is known of it."""

    converted: ConvertedTokenizer
    add_bos: bool
    ends: tuple[int, ...]
    """Ids that end an answer."""


def read_folder_tokenizer(folder: HuggingFaceFolder, family: Family, *, image_id: int) -> FolderTokenizer:
    """Read and check.

    Args:
        folder: The model's.
        family: Decides the default text.
        image_id: Id of the token that stands for pictures.

    Raises:
        ProductError: a file is missing or damaged, or the tokenizer lacks a token.
    """
    at = f"{folder.path.name}/{TOKENIZER_NAME}"
    data = folder.file(TOKENIZER_NAME).read(_LIMIT)
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # tokenizers raises Exception itself
        raise unreadable(at, f"no tokenizer: {error}") from error
    settings = {key: value for key, value in folder.json(SETTINGS).items() if key != "auto_map"}
    named = {name: text for name in _NAMED if (text := _text(settings.get(name))) is not None}
    ids = {name: number for name, text in named.items() if (number := tokenizer.token_to_id(text)) is not None}
    image = tokenizer.id_to_token(image_id)
    if image is None or "eos_token" not in ids:
        raise config_error(
            at,
            f"it has no token {image_id} for pictures, or no end-of-sequence token",
            f"copy the whole model there, with its own tokenizer and {SETTINGS}",
        )
    bos = ids.get("bos_token")
    add_bos = bos is not None and tokenizer.encode("x", add_special_tokens=True).ids[:1] == [bos]
    template = _template(folder, settings, named, image, family, bos=named["bos_token"] if add_bos else "")
    shortest = _check(tokenizer, template, image, image_id, add_bos=add_bos, at=at)
    written = json.dumps(settings, indent=2, ensure_ascii=False).encode()
    converted = ConvertedTokenizer(
        files={TOKENIZER_NAME: data, SETTINGS: written},
        template=template,
        vocab_size=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        bos=bos,
        eos=ids["eos_token"],
        media_patch=image_id,
        time_tokens=0,
        prompt_tokens=shortest,
        sources=(data, written),
    )
    return FolderTokenizer(converted, add_bos, _ends(folder, ids["eos_token"]))


def _template(
    folder: HuggingFaceFolder, settings: dict[str, Any], named: dict[str, str], image: str, family: Family, *, bos: str
) -> PromptTemplate:
    if (folder.path / _JINJA).is_file():
        window = folder.file(_JINJA)
        source = window.read(_LIMIT).decode(errors="replace")
        return read_template(source, named, image, family, bos=bos, at=window.at)
    for name in TEMPLATES:
        if (folder.path / name).is_file():
            found = (settings if name == SETTINGS else folder.json(name)).get("chat_template")
            if isinstance(found, str):
                return read_template(
                    found, named, image, family, bos=bos, at=f"{folder.path.name}/{name}: chat_template"
                )
    plain = plain_template(family)
    return plain.model_copy(update={"between": named["eos_token"]})


def _check(tokenizer: Tokenizer, template: PromptTemplate, image: str, number: int, *, add_bos: bool, at: str) -> int:
    """Require that the picture's token stays one token wherever it stands; give the shortest prompt's length.

    Raises:
        ProductError: it is merged with its neighbours, or is text like any other.
    """
    shortest = 0
    for text in ("", *SAMPLES):
        parts = render(template, (Turn((PICTURE, text)),))
        joined = "".join(part if isinstance(part, str) else image * part.rows for part in parts)
        ids = tokenizer.encode(joined, add_special_tokens=add_bos).ids
        rows = PICTURE.rows
        if ids.count(number) != rows:
            raise config_error(
                at, f"{image} is no token of its own in {joined[:60]!r}", "use the model's own tokenizer"
            )
        shortest = shortest or len(ids) - rows
    return shortest


def _ends(folder: HuggingFaceFolder, eos: int) -> tuple[int, ...]:
    """Give what ends an answer: the tokenizer's end, and what the model's generation names."""
    named = folder.json(GENERATION).get("eos_token_id") if (folder.path / GENERATION).is_file() else None
    listed = named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys((eos, *(token for token in listed if isinstance(token, int)))))


def _text(token: object) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
