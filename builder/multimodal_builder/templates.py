"""NeMo's conversation templates, as data.

Source: `nemo/collections/multimodal/data/neva/conversation.py` and `neva_dataset.py` of NeMo 2.2. `<image>` in a user's
text becomes the media rows and a newline; a medium without a place of its own stands in front of the text.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from multimodal_api.families import Family
from multimodal_api.overrides import MEDIA_SLOT, TEXT_SLOT
from multimodal_recipes.recipe import PromptTemplate

_ELABORATE: Final = "Please elaborate what you see in the images?"
DEFAULT_TEXTS: Final = {
    Family.NEVA: "Hi! What is in this image?",
    Family.VIDEO_NEVA: "Hi! What is in this video?",
    Family.VILA: _ELABORATE,
    Family.LITA: _ELABORATE,
    Family.VITA: _ELABORATE,
    Family.SALM: "what's the transcription of the audio?",
}
"""What NeMo's query client asks when it is told nothing."""


class Marks(NamedTuple):
    """Pieces at the place of media in the text that training tokenises."""

    start: str
    """Overwritten by the first row, unless `mm_cfg.use_im_start_end` is true."""
    patch: str
    """At each row between the two."""
    end: str


_MARKS: Final = Marks(start="<extra_id_4>", patch="<extra_id_3>", end="<extra_id_5>")
_LLAMA_3_MARKS: Final = Marks(
    start="<|reserved_special_token_4|>", patch="<|reserved_special_token_3|>", end="<|reserved_special_token_5|>"
)

VIDEO_START: Final = "<extra_id_8>"
VIDEO_END: Final = "<extra_id_9>"

SEQUENCE_MARKS: Final = {"<extra_id_6>": 1, "<extra_id_7>": 2}
"""Pieces that stand for the beginning and the end of a sequence, and the ids that training puts in their place."""

_CURIOUS: Final = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_CURIOUS_HUMAN: Final = _CURIOUS.replace("user", "human")
_HELPFUL: Final = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_LABELS: Final = (
    "<extra_id_2>quality:4,toxicity:0,humor:0,creativity:0,helpfulness:4,correctness:4,coherence:4,complexity:4,"
    "verbosity:4\n"
)
_BEGIN, _END = SEQUENCE_MARKS
_TURNS: Final = ("<extra_id_1>", _END)
"""NeMo's `end_strings`: the next turn's mark, and the end of a sequence."""


class Conversation(NamedTuple):
    """One template; the first four fields are those of `PromptTemplate`."""

    before: str
    turn: str
    between: str
    lead: str = ""
    stop_strings: tuple[str, ...] = _TURNS
    """Text that ends an answer, beside the tokenizer's own end of a sequence."""
    sequence_marks: bool = False
    """Whether training replaces the ids of `SEQUENCE_MARKS`."""
    behind_medium: str = "\n"
    """What stands between a medium and the text behind it."""


def _nvgpt(system: str, labels: str = "") -> Conversation:
    return Conversation(
        before=f"<extra_id_0>System\n{system}\n",
        turn=f"<extra_id_1>User\n{TEXT_SLOT}\n<extra_id_1>Assistant\n{labels}",
        between="\n",
    )


def _vicuna(system: str) -> Conversation:
    return Conversation(
        before=f"{system} ",
        turn=f"USER: {TEXT_SLOT} ASSISTANT:",
        lead=" ",
        between=f"{_END} ",
        sequence_marks=True,
    )


_NVGPT: Final = _nvgpt(f"{_CURIOUS}\n", _LABELS)
_V1: Final = _vicuna(_CURIOUS)

CONVERSATIONS: Final = {
    "nvgpt": _NVGPT,
    "nv_steerlm": _NVGPT,
    "nv_dpo": _nvgpt(""),
    "v1": _V1,
    "vicuna_v1": _V1,
    "llava_v1": _vicuna(_CURIOUS_HUMAN),
    "llama_2": Conversation(
        # The mark of the beginning is cut off in front of the first turn, with what else consists of its letters.
        before=f" [INST] <<SYS>>\n{_HELPFUL}\n<</SYS>>\n\n",
        turn=f"{TEXT_SLOT} [/INST]",
        lead=" ",
        between=f" {_END}{_BEGIN} [INST] ",
        sequence_marks=True,
    ),
    "llama_3": Conversation(
        before=f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{_HELPFUL}<|eot_id|>",
        turn=(
            f"<|start_header_id|>user<|end_header_id|>\n\n{TEXT_SLOT}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        between="<|eot_id|>",
        stop_strings=("<|eot_id|>",),
    ),
    "mistral": Conversation(before=_BEGIN, turn=f" [INST] {TEXT_SLOT} [/INST]", between=_END, sequence_marks=True),
    "yi_34b": Conversation(
        before="",
        turn=f"<|im_start|>user\n{TEXT_SLOT}<|im_end|>\n<|im_start|>assistant\n",
        between="<|im_end|>\n",
        stop_strings=("<|im_end|>",),
    ),
    "plain": Conversation(before="", turn=TEXT_SLOT, between="\n", stop_strings=("\n",), behind_medium=""),
}
"""By `data.conv_template`."""


def media_marks(model_type: str) -> Marks:
    """Give the media pieces of a `mm_cfg.llm.model_type`; all but `llama_3` have the same."""
    return _LLAMA_3_MARKS if model_type == "llama_3" else _MARKS


def prompt_template(conversation: Conversation, family: Family, marks: Marks, *, start_end: bool) -> PromptTemplate:
    """Make the recipe's template.

    Args:
        conversation: The checkpoint's.
        family: Decides the default text.
        marks: Of the checkpoint's `mm_cfg.llm.model_type`.
        start_end: `mm_cfg.use_im_start_end`.
    """
    media = f"{marks.start}{MEDIA_SLOT}{marks.end}" if start_end else MEDIA_SLOT
    return PromptTemplate(
        before=conversation.before,
        turn=conversation.turn,
        lead=conversation.lead,
        between=conversation.between,
        medium=f"{media}{conversation.behind_medium}",
        default_text=DEFAULT_TEXTS[family],
    )
