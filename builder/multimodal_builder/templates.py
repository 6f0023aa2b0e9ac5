"""NeMo's conversation templates, as data.

Source: `nemo/collections/multimodal/data/neva/conversation.py` and `neva_dataset.py` of NeMo 2.2. `<image>`
in a user's text becomes the media span and a newline; one without a place of its own stands in front of the text.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from multimodal_recipes.recipe import MEDIA_SLOT, TEXT_SLOT, PromptTemplate

DEFAULT_TEXT: Final = "Hi! What is in this image?"
"""Of NeMo's query client."""

MEDIA_START: Final = "<extra_id_4>"
MEDIA_END: Final = "<extra_id_5>"
"""Stand around the media where `mm_cfg.use_im_start_end` is true; else the media rows overwrite them."""

_CURIOUS: Final = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_HELPFUL: Final = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_LABELS: Final = (
    "<extra_id_2>quality:4,toxicity:0,humor:0,creativity:0,helpfulness:4,correctness:4,coherence:4,complexity:4,"
    "verbosity:4\n"
)
_TURNS: Final = ("<extra_id_1>", "<extra_id_7>")
"""NeMo's `end_strings`: the next turn's mark, and the end of a sequence."""


class Conversation(NamedTuple):
    """One template; the fields are those of `PromptTemplate`."""

    before: str
    turn: str
    between: str
    lead: str
    stop_strings: tuple[str, ...]


def _nvgpt(system: str, labels: str = "") -> Conversation:
    return Conversation(
        before=f"<extra_id_0>System\n{system}\n",
        turn=f"<extra_id_1>User\n{TEXT_SLOT}\n<extra_id_1>Assistant\n{labels}",
        between="\n",
        lead="",
        stop_strings=_TURNS,
    )


# v1 and llama_2 end an answer with a piece whose id NeMo replaces by that of the end of a sequence.
_V1: Final = Conversation(f"{_CURIOUS} ", f"USER: {TEXT_SLOT} ASSISTANT:", "<extra_id_7>", " ", ())
_NVGPT: Final = _nvgpt(f"{_CURIOUS}\n", _LABELS)

CONVERSATIONS: Final = {
    "nv_dpo": _nvgpt(""),
    "nvgpt": _NVGPT,
    "nv_steerlm": _NVGPT,
    "v1": _V1,
    "vicuna_v1": _V1,
    "llama_2": Conversation(
        f" [INST] <<SYS>>\n{_HELPFUL}\n<</SYS>>\n\n", f"{TEXT_SLOT} [/INST]", " <extra_id_7> [INST] ", " ", ()
    ),
}
"""By `data.conv_template`."""


def prompt_template(conversation: Conversation, *, start_end: bool) -> PromptTemplate:
    """Make the recipe's template.

    Args:
        conversation: The checkpoint's.
        start_end: `mm_cfg.use_im_start_end`.
    """
    media = f"{MEDIA_START}{MEDIA_SLOT}{MEDIA_END}" if start_end else MEDIA_SLOT
    return PromptTemplate(
        before=conversation.before,
        turn=conversation.turn,
        lead=conversation.lead,
        between=conversation.between,
        medium=f"{media}\n",
        default_text=DEFAULT_TEXT,
    )
