"""A language model that answers about rows of a medium, composed of transformers' parts; questions and marks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import torch
from tiny.judging import accepts
from tiny.learning import UNLEARNED, Packed
from tiny.pictures import Question
from tiny.prompts import MEDIA, Parts, Prompter
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

LONGEST_ANSWER: Final = 32  # tokens
BATCH: Final = 50

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class World(Generic[Content]):
    """What media of one kind show: contents, the questions about one, and how one is rendered."""

    contents: Callable[[int, bool], Iterator[Content]]
    """Of a seed, and whether of the held-out kind."""
    questions: Callable[[Content, Any], dict[str, Question]]
    render: Callable[[Content, Any], Any]
    row_labels: Callable[[Content, int], Tensor]
    """What each of so many rows should tell, [rows, labels]; not a number where nothing is asked."""
    deep_labels: Callable[[Content, int], Tensor] | None = None
    """What the language model should know at each row, before its last layer."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question about one medium: a picture, the frames of a video, or a sound's samples."""

    medium: Any
    question: Question
    kind: str


class Answerer(nn.Module):
    """A projector (or the whole perception of sounds), and a language model.

    `media` turns what `see` gives for each medium into rows, [rows of all media, hidden], in the order of the prompts.
    """

    def __init__(self, media: nn.Module, llm: PreTrainedModel) -> None:
        super().__init__()
        self.media = media
        self.llm = llm

    def embed(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Embeddings of prompts.

        Args:
            ids: [prompts, tokens], MEDIA at the media's rows.
            rows: [rows, hidden], of all prompts' media in order.

        Returns:
            [prompts, tokens, hidden].
        """
        embedding = self.llm.get_input_embeddings()
        text: Tensor = embedding(ids.clamp(min=0))
        return text.masked_scatter((ids == MEDIA)[..., None], rows)

    def loss(self, packed: Packed, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The mean cross entropy of all answers' tokens, and the media rows' states before the last layer."""
        ids = packed.ids.to(self.llm.device)
        output = self.llm.base_model(
            inputs_embeds=self.embed(ids, rows),
            attention_mask=packed.sees.to(ids.device),
            position_ids=packed.positions.to(ids.device),
            use_cache=False,
            output_hidden_states=True,
        )
        learned = (packed.targets != UNLEARNED).to(ids.device)
        targets = packed.targets.to(ids.device)[learned]
        logits = self.llm.get_output_embeddings()(output.last_hidden_state[learned])
        return functional.cross_entropy(logits, targets), output.hidden_states[-2][ids == MEDIA]


@dataclass(frozen=True)
class Subject:
    """A whole model with what it needs to see and to read."""

    model: Answerer
    prompter: Prompter
    see: Callable[[Sequence[Any]], list[Tensor]]
    """The frozen part: media to what the model's `media` takes, one tensor each."""
    layout: Callable[[Tensor], Parts]
    """How a medium stands in a prompt."""

    @torch.no_grad()
    def answer(self, asked: Sequence[Case]) -> list[str]:
        """Greedy answers, in order."""
        self.model.eval()
        seen = self.see([case.medium for case in asked])
        prompts = [
            self.prompter.beginning(self.layout(each)) + self.prompter.question_ids(case.question.text)
            for each, case in zip(seen, asked, strict=True)
        ]
        longest = max(map(len, prompts))
        pad = self.prompter.eos
        device = self.model.llm.device
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        written = self.model.llm.generate(  # type: ignore[operator] # the mixin's hints are lost on the base class
            inputs_embeds=self.model.embed(ids, self.model.media(seen)),
            attention_mask=mask,
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
            eos_token_id=self.prompter.stop_ids,
            pad_token_id=pad,
        )
        return [self.prompter.read(row) for row in written.tolist()]


def wrong_answers(subject: Subject, asked: Sequence[Case]) -> list[tuple[Case, str]]:
    """The cases answered wrong, with what the model said."""
    said = [answer for start in range(0, len(asked), BATCH) for answer in subject.answer(asked[start : start + BATCH])]
    return [
        (case, answer) for case, answer in zip(asked, said, strict=True) if not accepts(case.question.answer, answer)
    ]
