"""A tokenizer in Hugging Face's form, and the proof that it gives the ids of training."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from multimodal_builder.checkpoints.config import config_error
from multimodal_recipes.prompt import MediaSlot, Medium, Turn, render
from multimodal_recipes.tokenizer import TOKENIZER_NAME
from multimodal_recipes.tokenizer import Tokenizer as ServingTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multimodal_api.errors import ProductError
    from multimodal_builder.templates import Marks
    from multimodal_recipes.recipe import PromptTemplate

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
class Usage:
    """How a checkpoint uses its tokenizer."""

    template: PromptTemplate
    """The prompt as the training's text has it."""
    marks: Marks
    """Pieces at the place of media."""
    positions: int
    """Longest sequence of the model."""
    replaced: Mapping[str, int] = field(default_factory=dict)
    """Pieces whose ids training replaces by others."""


@dataclass(frozen=True, slots=True)
class ConvertedTokenizer:
    """A tokenizer in Hugging Face's form."""

    files: dict[str, bytes]
    """For `llm/`."""
    template: PromptTemplate
    """The prompt as the converted tokenizer wants it."""
    vocab_size: int
    bos: int | None
    eos: int
    media_patch: int
    """Id of the piece at the rows of media."""
    prompt_tokens: int
    """Length of the shortest prompt, without media."""


class Original(Protocol):
    """The tokenizer of training."""

    def encode(self, text: str) -> list[int]:
        """Give the ids that training fed to the model for a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of ids."""

    def piece_id(self, piece: str) -> int | None:
        """Give the id of a piece of the vocabulary."""


def mark_ids(original: Original, marks: Marks, at: str) -> tuple[int, int, int]:
    """Give the ids of the three media pieces.

    Raises:
        ProductError: one of them is missing.
    """
    ids = [original.piece_id(piece) for piece in marks]
    for piece, found in zip(marks, ids, strict=True):
        if found is None:
            raise config_error(
                at,
                f"it lacks the piece {piece}",
                "use the tokenizer the model was trained with, with NeVA's media tokens",
            )
    start, patch, end = (found for found in ids if found is not None)
    return start, patch, end


def check_prompts(serialised: bytes, original: Original, usage: Usage, served: PromptTemplate, at: str) -> int:
    """Compare whole prompts, as training and as serving make them, and texts read back.

    Args:
        serialised: `tokenizer.json`.
        original: The tokenizer of training.
        usage: The checkpoint's.
        served: The template for the converted tokenizer.
        at: What to call the tokenizer in an error.

    Returns:
        The shortest prompt's length, without media.

    Raises:
        ProductError: a prompt has other ids, or other text.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, TOKENIZER_NAME)
        path.write_bytes(serialised)
        tokenizer = ServingTokenizer(path, add_bos=False)
    media = "".join(usage.marks)  # three pieces, whose places three media rows take
    media_ids = mark_ids(original, usage.marks, at)
    shortest = 0
    for text in ("", *SAMPLES):
        asked = Turn((Medium((MediaSlot(len(media_ids)),)), text))
        for turns in ((asked,), (replace(asked, answer=text), asked)):
            whole = "".join(part if isinstance(part, str) else media for part in render(usage.template, turns))
            wanted = original.encode(whole)
            prompt = tokenizer.encode(render(served, turns))
            found = list(prompt.ids)
            for span in prompt.media:
                found[span.start : span.start + span.length] = media_ids
            if found != wanted:
                raise _differs(at, text, wanted, found)
            if tokenizer.decode(wanted) != original.decode(wanted):
                raise _differs(at, text, original.decode(wanted), tokenizer.decode(wanted))
            shortest = shortest or len(wanted) - prompt.media_length
    return shortest


def _differs(at: str, text: str, wanted: Sequence[object], found: Sequence[object]) -> ProductError:
    both = enumerate(zip_longest(wanted, found))
    place, (right, wrong) = next((place, pair) for place, pair in both if pair[0] != pair[1])
    return config_error(
        at,
        f"its result for {text!r} cannot be repeated in Hugging Face's form: {wrong!r} instead of {right!r} at {place}",
        "report it with this tokenizer: its rules are not known to this version",
    )
