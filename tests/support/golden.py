"""Golden prompts: texts that NeMo 2.2's own conversation code rendered, ids by SentencePiece; and the product's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from multimodal_api.families import Family
from multimodal_builder import templates
from multimodal_builder.sentencepiece_tokenizer import convert_sentencepiece
from multimodal_builder.tokenizer import ConvertedTokenizer, Usage
from multimodal_recipes.prompt import MediaSlot, Medium, Prompt, Turn, render
from multimodal_recipes.tokenizer import TOKENIZER_NAME, Tokenizer

GOLDEN: Final[dict[str, Any]] = json.loads(Path(__file__).with_name("golden_prompts.json").read_text())
MEDIA: Final = Medium((MediaSlot(4),))
QUESTIONS: Final = ("How many red circles are there?", "And what is left of the blue square?")
TURNS: Final = {
    "one": (Turn((MEDIA, QUESTIONS[0])),),
    "two": (Turn((MEDIA, QUESTIONS[0]), answer="Three."), Turn((QUESTIONS[1],))),
}


def convert(data: bytes, name: str, *, start_end: bool = False) -> ConvertedTokenizer:
    conversation, marks = templates.CONVERSATIONS[name], templates.media_marks("nvgpt")
    usage = Usage(
        template=templates.prompt_template(conversation, Family.NEVA, marks, start_end=start_end),
        marks=marks,
        positions=4096,
        replaced=templates.SEQUENCE_MARKS if conversation.sequence_marks else {},
    )
    return convert_sentencepiece(data, usage, at="tokenizer.model")


def served(converted: ConvertedTokenizer, folder: Path, turns: str) -> Prompt:
    path = folder / TOKENIZER_NAME
    path.write_bytes(converted.files[TOKENIZER_NAME])
    return Tokenizer(path, add_bos=False).encode(render(converted.template, TURNS[turns]))


def training_ids(name: str, turns: str, prompt: Prompt) -> list[int]:
    """Golden ids, with the product's own in the place of the medium."""
    ids: list[int] = list(GOLDEN[name][turns]["ids"])
    (span,) = prompt.media
    place = slice(span.start, span.start + span.length)
    ids[place] = prompt.ids[place]
    return ids
