"""A tokenizer in Hugging Face's form, and the proof that it gives the ids of training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count, zip_longest
from typing import TYPE_CHECKING, Final, Protocol

from multimodal_api.overrides import MEDIA_SLOT
from multimodal_builder.checkpoints.config import config_error
from multimodal_recipes.prompt import MediaSlot, Medium, Turn, render
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


PICTURE: Final = Medium((MediaSlot(3),))
"""A medium as the checks of prompts need it: any number of rows does."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How a checkpoint uses its tokenizer."""

    template: PromptTemplate
    """The prompt as the training's text has it."""
    marks: Marks | None
    """Pieces at the place of media; None where rows stand in front of all text, and training tokenises that alone."""
    positions: int
    """Longest sequence of the model."""
    replaced: Mapping[str, int] = field(default_factory=dict)
    """Pieces whose ids training replaces by others."""
    medium: Medium = PICTURE
    """How one medium stands in a prompt, as to the texts between its rows."""

    def behind(self, space: str) -> PromptTemplate:
        """Give the template with something in front of the first text."""
        if self.marks:
            return self.template.model_copy(update={"before": space + self.template.before})
        medium = self.template.medium.replace(MEDIA_SLOT, MEDIA_SLOT + space, 1)
        return self.template.model_copy(update={"medium": medium})


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
    media_patch: int | None
    """Id of the piece at the rows of media, where there is one."""
    time_tokens: int
    """Number of pieces `<t0>`, `<t1>` and so on."""
    prompt_tokens: int
    """Length of the shortest prompt, without rows of media."""
    sources: tuple[bytes, ...] = ()
    """The files that it was made of."""


class Original(Protocol):
    """The tokenizer of training."""

    def encode(self, text: str) -> list[int]:
        """Give the ids that training fed to the model for a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of ids."""

    def piece_id(self, piece: str) -> int | None:
        """Give the id of a piece of the vocabulary."""


def check_pieces(original: Original, usage: Usage, at: str) -> int | None:
    """Require the pieces at the place of media.

    Returns:
        The id of the piece at rows, where there is one.

    Raises:
        ProductError: one is missing.
    """
    texts = (part for part in usage.medium.parts if isinstance(part, str))
    for piece in dict.fromkeys((*(usage.marks or ()), *texts)):
        if original.piece_id(piece) is None:
            raise config_error(
                at,
                f"it lacks the piece {piece}",
                "use the tokenizer the model was trained with, with NeVA's media tokens",
            )
    return original.piece_id(usage.marks.patch) if usage.marks else None


def count_time_tokens(original: Original) -> int:
    """Count the pieces `<t0>`, `<t1>` and so on."""
    return next(number for number in count() if original.piece_id(f"<t{number}>") is None)


def check_prompts(serialised: bytes, original: Original, usage: Usage, served: PromptTemplate, at: str) -> int:
    """Compare whole prompts, as training and as serving make them, and texts read back.

    Args:
        serialised: `tokenizer.json`.
        original: The tokenizer of training.
        usage: The checkpoint's.
        served: The template for the converted tokenizer.
        at: What to call the tokenizer in an error.

    Returns:
        The shortest prompt's length, without rows of media.

    Raises:
        ProductError: a prompt has other ids, or other text.
    """
    tokenizer = ServingTokenizer(serialised, add_bos=False)
    patch, row = (usage.marks.patch, [original.piece_id(usage.marks.patch)]) if usage.marks else ("", [])
    shortest = 0
    for text in ("", *SAMPLES):
        asked = Turn((usage.medium, text))
        again = ((replace(asked, answer=text), asked),) if usage.marks else ()
        for turns in ((asked,), *again):
            parts = render(usage.template, turns)
            wanted = original.encode("".join(part if isinstance(part, str) else patch * part.rows for part in parts))
            prompt = tokenizer.encode(render(served, turns))
            found: list[int | None] = list(prompt.ids)
            for span in prompt.media:
                found[span.start : span.start + span.length] = row * span.length
            if found != wanted:
                raise differs(at, text, wanted, found)
            if tokenizer.decode(wanted) != original.decode(wanted):
                raise differs(at, text, original.decode(wanted), tokenizer.decode(wanted))
            shortest = shortest or len(prompt.ids) - prompt.media_length
    return shortest


def differs(at: str, text: str, wanted: Sequence[object], found: Sequence[object]) -> ProductError:
    """Make the error of a tokenizer whose ids or texts are not those of training."""
    both = enumerate(zip_longest(wanted, found))
    place, (right, wrong) = next((place, pair) for place, pair in both if pair[0] != pair[1])
    return config_error(
        at,
        f"its result for {text!r} cannot be repeated in Hugging Face's form: {wrong!r} instead of {right!r} at {place}",
        "report it with this tokenizer: its rules are not known to this version",
    )
