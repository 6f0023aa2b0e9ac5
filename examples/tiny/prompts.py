"""Prompts of every family, as NeMo's training text has them, and the tokenizers they are written for."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, Protocol

import sentencepiece
from tokenizers import Tokenizer

MEDIA: Final = -1
"""Stands in a list of ids wherever a row of the medium stands."""

Parts = tuple[str | int, ...]
"""How one medium stands in a prompt: pieces of text, and numbers of rows."""

# 0 system, 1 turn, 2 labels, 3 media patch, 4 and 5 media start and end, 6 bos, 7 eos, 8 and 9 video start and end.
SPECIALS: Final = tuple(f"<extra_id_{number}>" for number in range(10))
TIMES: Final = tuple(f"<t{number}>" for number in range(100))
PATCH_PIECE: Final = SPECIALS[3]

CURIOUS: Final = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
HELPFUL: Final = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
LABELS: Final = (
    "<extra_id_2>quality:4,toxicity:0,humor:0,creativity:0,helpfulness:4,correctness:4,coherence:4,complexity:4,"
    "verbosity:4\n"
)


class TextTokenizer(Protocol):
    """What the prompts need of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with nothing added."""

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""

    def piece_to_id(self, piece: str) -> int:
        """The id of one piece."""


@dataclass(frozen=True, slots=True)
class FastTokenizer:
    """A `tokenizer.json`, without what its post-processor adds."""

    tokenizer: Tokenizer

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special ones included."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def piece_to_id(self, piece: str) -> int:
        """The id of one token."""
        found = self.tokenizer.token_to_id(piece)
        if found is None:
            raise KeyError(piece)
        return found


def train_sentencepiece(sentences: Iterable[str], size: int, symbols: Sequence[str], *, prefix: bool) -> bytes:
    """Train a SentencePiece model as Llama and the nvgpt family use it: byte pair pieces, bytes for the rest.

    Args:
        sentences: Texts of the kind the model will read and write.
        size: How many pieces.
        symbols: Pieces that are never cut.
        prefix: Whether a space is put in front of every text, as Llama's does.

    Returns:
        The model file.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        user_defined_symbols=[*symbols, "\n"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@dataclass(frozen=True, slots=True)
class Template:
    """One user turn of a conversation template.

    `turn` holds `{media}` (or none: the medium stands in front of all text) and `{question}`. NeMo turns `<image>` in
    the user's text into the medium and a newline. `end` is the text behind an answer; None is the end-of-sequence id.
    """

    turn: str
    lead: str
    end: str | None
    stops: tuple[str, ...] = ()


NVGPT: Final = Template(
    f"<extra_id_0>System\n{CURIOUS}\n\n<extra_id_1>User\n{{media}}\n{{question}}\n<extra_id_1>Assistant\n{LABELS}",
    lead="",
    end="\n<extra_id_1>",
    stops=(SPECIALS[1], SPECIALS[7]),
)
# The separator behind v1's answers is <extra_id_7>, whose id NeMo replaces by that of the end of a sequence.
V1: Final = Template(f"{CURIOUS} USER: {{media}}\n{{question}} ASSISTANT:", lead=" ", end=None)
LLAMA_3: Final = Template(
    f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{HELPFUL}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{media}\n{question}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    lead="",
    end="<|eot_id|>",
    stops=("<|eot_id|>",),
)
SALM: Final = Template("Q: {question}\nA:", lead=" ", end=None)


@dataclass(frozen=True)
class Prompter:
    """Turns questions into token ids and generated ids into answers."""

    tokenizer: TextTokenizer
    template: Template
    eos: int

    @cached_property
    def stop_ids(self) -> list[int]:
        """The ids that end an answer."""
        return [*(self.tokenizer.piece_to_id(piece) for piece in self.template.stops), self.eos]

    def beginning(self, parts: Parts) -> list[int]:
        """What all prompts about one medium begin with, MEDIA at its rows.

        Args:
            parts: How the medium stands in the prompt.
        """
        before, _ = _cut(self, "")
        medium = [[MEDIA] * part if isinstance(part, int) else [self.tokenizer.piece_to_id(part)] for part in parts]
        return [*before, *(token for part in medium for token in part)]

    def question_ids(self, question: str) -> list[int]:
        """The ids behind the medium, up to where the answer begins."""
        return list(_cut(self, question)[1])

    def answer_ids(self, question: str, answer: str) -> list[int]:
        """The ids the model must write for an answer, its end included."""
        return list(_answer(self, question, answer))

    def read(self, ids: Sequence[int]) -> str:
        """The answer in generated ids: up to the first id that ends it."""
        stop = next((place for place, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return self.tokenizer.decode(list(ids[:stop])).strip()


@lru_cache(maxsize=50_000)
def _cut(prompter: Prompter, question: str, reply: str = "") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Encode a whole prompt, as NeMo does with the medium's patches in it, and cut it at the medium."""
    text = prompter.template.turn.replace("{question}", question) + reply
    if "{media}" not in text:
        return (), tuple(prompter.tokenizer.encode(text))
    ids = prompter.tokenizer.encode(text.replace("{media}", PATCH_PIECE))
    at = ids.index(prompter.tokenizer.piece_to_id(PATCH_PIECE))
    return tuple(ids[:at]), tuple(ids[at + 1 :])


@lru_cache(maxsize=50_000)
def _answer(prompter: Prompter, question: str, answer: str) -> tuple[int, ...]:
    end = prompter.template.end
    _, asked = _cut(prompter, question)
    _, whole = _cut(prompter, question, prompter.template.lead + answer + (end or ""))
    if whole[: len(asked)] != asked:
        raise ValueError(f"the answer {answer!r} changes the ids of {question!r}")
    return (*whole[len(asked) :], *(() if end else (prompter.eos,)))
