"""The tokenizer of a Hugging Face model: carried over as it is, with the conversation that it was made for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tokenizers import AddedToken, Tokenizer

from multimodal_builder.chat_template import plain_template, read_template
from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.errors import unreadable
from multimodal_builder.sentencepiece_tokenizer import llama_tokenizer, named_pieces
from multimodal_builder.tokenizer import PICTURE, SAMPLES, ConvertedTokenizer
from multimodal_builder.tokenizer_files import SENTENCEPIECE_NAME
from multimodal_recipes.prompt import Turn, render
from multimodal_recipes.tokenizer import TOKENIZER_NAME

if TYPE_CHECKING:
    from multimodal_api.families import Family
    from multimodal_builder.checkpoints.huggingface import HuggingFaceFolder
    from multimodal_recipes.recipe import PromptTemplate

SETTINGS: Final = "tokenizer_config.json"
GENERATION: Final = "generation_config.json"
ADDED: Final = "added_tokens.json"
TEMPLATES: Final = ("chat_template.json", "processor_config.json", SETTINGS)
"""Files that may hold a `chat_template`, as transformers looks for it; before them comes `chat_template.jinja`."""
_JINJA: Final = "chat_template.jinja"
_WHOLE: Final = f"copy the whole model there, with its own tokenizer and {SETTINGS}"
_LIMIT: Final = 64 * 2**20
_NAMED: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "image_token")


@dataclass(frozen=True, slots=True)
class FolderTokenizer:
    """What is known of it."""

    converted: ConvertedTokenizer
    add_bos: bool
    ends: tuple[int, ...]
    """Ids that end an answer."""
    stop_strings: tuple[str, ...] = ()
    """Texts that do."""


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A tokenizer as it lies in a folder."""

    folder: HuggingFaceFolder
    at: str
    tokenizer: Tokenizer
    data: bytes
    """`tokenizer.json`."""
    settings: dict[str, Any]
    """`tokenizer_config.json`."""
    named: dict[str, str]
    """Texts of special tokens by transformers' names."""
    eos: int

    @property
    def bos(self) -> int | None:
        """Id of the token that begins a sequence."""
        text = self.named.get("bos_token")
        return None if text is None else self.tokenizer.token_to_id(text)

    @property
    def add_bos(self) -> bool:
        """Whether it stands in front of every text."""
        return self.bos is not None and self.tokenizer.encode("x", add_special_tokens=True).ids[:1] == [self.bos]

    def folder_tokenizer(
        self,
        template: PromptTemplate,
        *,
        media_patch: int | None,
        prompt_tokens: int,
        stop_strings: tuple[str, ...] = (),
    ) -> FolderTokenizer:
        """Give what goes into the canonical model."""
        written = json.dumps(self.settings, indent=2, ensure_ascii=False).encode()
        converted = ConvertedTokenizer(
            files={TOKENIZER_NAME: self.data, SETTINGS: written},
            template=template,
            vocab_size=max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
            bos=self.bos,
            eos=self.eos,
            media_patch=media_patch,
            time_tokens=0,
            prompt_tokens=prompt_tokens,
            sources=(self.data, written),
        )
        return FolderTokenizer(converted, self.add_bos, _ends(self.folder, self.eos), stop_strings)


def read_folder_tokenizer(folder: HuggingFaceFolder, family: Family, *, image_id: int) -> FolderTokenizer:
    """Read and check the tokenizer of a model that has a token for pictures.

    Args:
        folder: The model's.
        family: Decides the default text.
        image_id: Id of the token that stands for pictures.

    Raises:
        ProductError: a file is missing or damaged, or the tokenizer lacks a token.
    """
    loaded = load_tokenizer(folder)
    image = loaded.tokenizer.id_to_token(image_id)
    if image is None:
        raise config_error(loaded.at, f"it has no token {image_id} for pictures", _WHOLE)
    template = _template(loaded, image, family)
    shortest = _check(loaded, template, image, image_id)
    return loaded.folder_tokenizer(template, media_patch=image_id, prompt_tokens=shortest)


def load_tokenizer(folder: HuggingFaceFolder) -> LoadedTokenizer:
    """Read `tokenizer.json`, or make it of a SentencePiece model where there is nothing else.

    Raises:
        ProductError: a file is missing or damaged, or nothing ends a sequence.
    """
    settings = {key: value for key, value in folder.json(SETTINGS).items() if key != "auto_map"}
    if not (folder.path / TOKENIZER_NAME).is_file() and (folder.path / SENTENCEPIECE_NAME).is_file():
        return _sentencepiece(folder, settings)
    at = f"{folder.path.name}/{TOKENIZER_NAME}"
    data = folder.file(TOKENIZER_NAME).read(_LIMIT)
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # tokenizers raises Exception itself
        raise unreadable(at, f"no tokenizer: {error}") from error
    return _loaded(folder, at, tokenizer, data, settings)


def _sentencepiece(folder: HuggingFaceFolder, settings: dict[str, Any]) -> LoadedTokenizer:
    """Make what transformers makes of `tokenizer.model`; its Llama puts the beginning in front unless told not to."""
    window = folder.file(SENTENCEPIECE_NAME)
    data = window.read(_LIMIT)
    added = _listed(folder, settings)
    tokenizer = llama_tokenizer(data, added, add_bos=settings.get("add_bos_token") is not False, at=window.at)
    settings = {**named_pieces(data, window.at), **settings, "tokenizer_class": "PreTrainedTokenizerFast"}
    return _loaded(folder, window.at, tokenizer, tokenizer.to_str().encode(), settings)


def _listed(folder: HuggingFaceFolder, settings: dict[str, Any]) -> dict[int, AddedToken]:
    """Give the tokens that stand beside a model file, by id; older transformers lists their texts alone.

    Raises:
        ProductError: an entry is none.
    """
    at = f"{folder.path.name}/{SETTINGS}: added_tokens_decoder"
    try:
        texts = folder.json(ADDED) if (folder.path / ADDED).is_file() else {}
        plain = {int(number): AddedToken(text, normalized=False, special=True) for text, number in texts.items()}
        entries = settings.get("added_tokens_decoder") or {}
        return plain | {int(number): AddedToken(**fields) for number, fields in entries.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise unreadable(at, f"it is damaged: {error}") from error


def _loaded(
    folder: HuggingFaceFolder, at: str, tokenizer: Tokenizer, data: bytes, settings: dict[str, Any]
) -> LoadedTokenizer:
    named = {name: text for name in _NAMED if (text := _text(settings.get(name))) is not None}
    eos = tokenizer.token_to_id(named.get("eos_token", ""))
    if eos is None:
        raise config_error(at, "it has no end-of-sequence token", _WHOLE)
    return LoadedTokenizer(folder, at, tokenizer, data, settings, named, eos)


def _template(loaded: LoadedTokenizer, image: str, family: Family) -> PromptTemplate:
    folder, named = loaded.folder, loaded.named
    bos = named["bos_token"] if loaded.add_bos else ""
    if (folder.path / _JINJA).is_file():
        window = folder.file(_JINJA)
        source = window.read(_LIMIT).decode(errors="replace")
        return read_template(source, named, image, family, bos=bos, at=window.at)
    for name in TEMPLATES:
        if (folder.path / name).is_file():
            found = (loaded.settings if name == SETTINGS else folder.json(name)).get("chat_template")
            if isinstance(found, str):
                return read_template(
                    found, named, image, family, bos=bos, at=f"{folder.path.name}/{name}: chat_template"
                )
    plain = plain_template(family)
    return plain.model_copy(update={"between": named["eos_token"]})


def _check(loaded: LoadedTokenizer, template: PromptTemplate, image: str, number: int) -> int:
    """Require that the picture's token stays one token wherever it stands; give the shortest prompt's length.

    Raises:
        ProductError: it is merged with its neighbours, or is text like any other.
    """
    shortest = 0
    for text in ("", *SAMPLES):
        parts = render(template, (Turn((PICTURE, text)),))
        joined = "".join(part if isinstance(part, str) else image * part.rows for part in parts)
        ids = loaded.tokenizer.encode(joined, add_special_tokens=loaded.add_bos).ids
        rows = PICTURE.rows
        if ids.count(number) != rows:
            raise config_error(
                loaded.at, f"{image} is no token of its own in {joined[:60]!r}", "use the model's own tokenizer"
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
