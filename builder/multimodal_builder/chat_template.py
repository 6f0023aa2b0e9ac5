"""From a chat template (Jinja, as Hugging Face's processors carry it) to the recipe's, by rendering it once."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from multimodal_api.overrides import MEDIA_SLOT, TEXT_SLOT
from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.templates import DEFAULT_TEXTS
from multimodal_recipes.recipe import PromptTemplate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_api.errors import ProductError
    from multimodal_api.families import Family

_FIRST, _ANSWER, _SECOND = "first-question-0", "first-answer-1", "second-question-2"
"""Texts that no template holds."""
LLAVA: Final = "USER: {media}\n{text} ASSISTANT:"
"""LLaVA 1.5's turn, for folders without a chat template."""


def plain_template(family: Family) -> PromptTemplate:
    """Give LLaVA 1.5's own conversation."""
    ahead, _, behind = LLAVA.partition(f"{MEDIA_SLOT}\n")
    return PromptTemplate(
        before="",
        turn=f"{ahead}{behind}",
        lead=" ",
        between="</s>",
        medium=f"{MEDIA_SLOT}\n",
        default_text=DEFAULT_TEXTS[family],
    )


def read_template(
    source: str, tokens: Mapping[str, str], image: str, family: Family, *, bos: str, at: str
) -> PromptTemplate:
    """Render two conversations with known texts, and see what stands around these.

    Args:
        source: The template; it runs in Jinja's sandbox.
        tokens: What it may call by name: `bos_token`, `eos_token` and so on.
        image: The text that it writes for a picture.
        family: Decides the default text.
        bos: What is cut off in front, because the tokenizer puts it there itself.
        at: What to call it in an error.

    Raises:
        ProductError: it cannot be rendered, or does not make conversations of turns that all look the same.
    """
    one = _render(source, [_asked(_FIRST, picture=True)], tokens, at).removeprefix(bos)
    turns = [_asked(_FIRST, picture=True), _answered(), _asked(_SECOND, picture=False)]
    two = _render(source, turns, tokens, at).removeprefix(bos)
    ahead, found, tail = one.partition(image)
    behind_medium, asked, end = tail.partition(_FIRST)
    start, answered, rest = two.partition(_ANSWER)
    gap, again, last = rest.partition(_SECOND)
    lead = start.removeprefix(one)
    if not (found and asked and answered and again) or last != end or not start.startswith(one):
        raise _unusual(at, "its turns do not look the same, or it leaves out a picture or a text")
    shared = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(ahead), reversed(gap), strict=False))
    )
    opening = ahead[len(ahead) - shared :]
    if any(slot in one + two for slot in (TEXT_SLOT, MEDIA_SLOT)):
        raise _unusual(at, f"it writes {TEXT_SLOT} or {MEDIA_SLOT}")
    return PromptTemplate(
        before=ahead.removesuffix(opening),
        turn=f"{opening}{TEXT_SLOT}{end}",
        lead=lead,
        between=gap.removesuffix(opening),
        medium=f"{MEDIA_SLOT}{behind_medium}",
        default_text=DEFAULT_TEXTS[family],
    )


def _asked(text: str, *, picture: bool) -> dict[str, Any]:
    content = [*([{"type": "image"}] if picture else []), {"type": "text", "text": text}]
    return {"role": "user", "content": content}


def _answered() -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}


def _render(source: str, messages: list[dict[str, Any]], tokens: Mapping[str, str], at: str) -> str:
    from jinja2.exceptions import TemplateError  # noqa: PLC0415 -- few checkpoints need it
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    # The settings of transformers' apply_chat_template.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    try:
        return environment.from_string(source).render(messages=messages, add_generation_prompt=True, **tokens)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise _unusual(at, f"it cannot be rendered: {str(error)[:200]}") from error


def _raise(message: str) -> None:
    raise ValueError(message)


def _unusual(at: str, problem: str) -> ProductError:
    return config_error(at, problem, "remove it, so that LLaVA 1.5's own conversation is used, or correct it")
