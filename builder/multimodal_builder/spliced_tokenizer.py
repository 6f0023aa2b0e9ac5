"""The tokenizer of LLaVA's and VILA's own code, which tokenises the texts around pictures each by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_api.overrides import MEDIA_SLOT
from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.folder_tokenizer import load_tokenizer
from multimodal_builder.templates import CONVERSATIONS, DEFAULT_TEXTS
from multimodal_builder.tokenizer import PICTURE, SAMPLES, differs
from multimodal_recipes.prompt import MediaSlot, Turn, render
from multimodal_recipes.recipe import PromptTemplate
from multimodal_recipes.tokenizer import Tokenizer as ServingTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multimodal_api.families import Family
    from multimodal_builder.checkpoints.huggingface import HuggingFaceFolder
    from multimodal_builder.folder_tokenizer import FolderTokenizer, LoadedTokenizer

_START, _END = "<im_start>", "<im_end>"
"""Tokens around a picture with `mm_use_im_start_end`."""
_HEADER: Final = "<|start_header_id|>"
"""A token of Llama 3."""
_CHATML: Final = "<|im_start|>"
_BEHIND: Final = ("\n", " \n")
"""What stands behind a picture: a line break, and where every text begins with a space, that one."""


def read_spliced_tokenizer(folder: HuggingFaceFolder, family: Family, *, start_end: bool) -> FolderTokenizer:
    """Read and check a tokenizer, and decide the conversation: Llama 3's where it has its tokens, else `v1`.

    Source: `tokenizer_image_token` of `llava/mm_utils.py`, and `llava/conversation.py`.

    Args:
        folder: Of the language model.
        family: Decides the default text.
        start_end: `mm_use_im_start_end`.

    Raises:
        ProductError: a file is missing or damaged, or a prompt's ids cannot be repeated.
    """
    loaded = load_tokenizer(folder)
    known = loaded.tokenizer.token_to_id
    if known(_CHATML) is not None:
        raise config_error(loaded.at, f"it has {_CHATML}, of a conversation that is not known", "use another model")
    if start_end and (known(_START) is None or known(_END) is None):
        raise config_error(
            loaded.at,
            f"it has no {_START} and {_END}, which mm_use_im_start_end asks for",
            "copy all files of the tokenizer there",
        )
    llama_3 = known(_HEADER) is not None
    template, shortest = _checked(loaded, family, "llama_3" if llama_3 else "v1", start_end=start_end)
    stop_strings = CONVERSATIONS["llama_3"].stop_strings if llama_3 else ()
    return loaded.folder_tokenizer(template, media_patch=None, prompt_tokens=shortest, stop_strings=stop_strings)


def _checked(loaded: LoadedTokenizer, family: Family, name: str, *, start_end: bool) -> tuple[PromptTemplate, int]:
    """Find the template whose prompts have the ids of training, and the shortest one's length.

    Raises:
        ProductError: there is none.
    """
    served = ServingTokenizer(loaded.data, add_bos=loaded.add_bos)
    plain, *others = (_template(loaded, family, name, behind, start_end=start_end) for behind in _BEHIND)
    problem = None
    for template in (plain, *others):
        try:
            return template, _compare(loaded, served, plain, template)
        except _DifferentError as found:
            problem = problem or found
    text, wanted, ids = problem.args if problem else ("", (), ())
    raise differs(loaded.at, text, wanted, ids)


class _DifferentError(Exception):
    """A text whose ids differ, and both."""


def _template(loaded: LoadedTokenizer, family: Family, name: str, behind: str, *, start_end: bool) -> PromptTemplate:
    conversation = CONVERSATIONS[name]
    around = (_START, _END) if start_end else ("", "")
    return PromptTemplate(
        before=conversation.before,
        turn=conversation.turn,
        lead=conversation.lead,
        between=loaded.named["eos_token"] if conversation.sequence_marks else conversation.between,
        medium=f"{around[0]}{MEDIA_SLOT}{around[1]}{behind}",
        default_text=DEFAULT_TEXTS[family],
    )


def _compare(loaded: LoadedTokenizer, served: ServingTokenizer, plain: PromptTemplate, template: PromptTemplate) -> int:
    shortest = 0
    for text in ("", *SAMPLES):
        asked = Turn((PICTURE, text))
        for turns in ((asked,), (Turn((PICTURE, text), answer="One."), asked)):
            wanted = list(_training(loaded, render(plain, turns)))
            prompt = served.encode(render(template, turns))
            found: list[int | None] = list(prompt.ids)
            for span in prompt.media:
                found[span.start : span.start + span.length] = [None] * span.length
            if found != wanted:
                raise _DifferentError(text, wanted, found)
            shortest = shortest or len(found) - prompt.media_length
    return shortest


def _training(loaded: LoadedTokenizer, parts: Iterable[str | MediaSlot]) -> Iterable[int | None]:
    """Give the ids that training fed to the model: of each text by itself, with one beginning; None for rows."""
    first = True
    for part in parts:
        if isinstance(part, MediaSlot):
            yield from [None] * part.rows
        else:
            ids = loaded.tokenizer.encode(part, add_special_tokens=loaded.add_bos).ids
            yield from ids if first or not loaded.add_bos else ids[1:]
        first = False
