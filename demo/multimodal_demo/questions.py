"""Pictures that the model never saw in its training, a question about each, and the right answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HELDOUT: Final = Path(__file__).resolve().parent.parent.parent / "examples" / "tiny" / "neva" / "heldout"


@dataclass(frozen=True, slots=True)
class Question:
    """A question.

    Attributes:
        picture: the file.
        text: what is asked.
        right: the right answer.
    """

    picture: Path
    text: str
    right: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said.

    Attributes:
        question: the question.
        text: the answer.
        seconds: from the start of the command to its end, the program's own start included.
    """

    question: Question
    text: str
    seconds: float

    @property
    def is_right(self) -> bool:
        """Compare with the right answer, letter by letter."""
        return self.text == self.question.right


def load() -> list[Question]:
    """Read all questions."""
    entries = json.loads((HELDOUT / "heldout.json").read_text())
    return [Question(HELDOUT / each["picture"], each["question"], each["answer"]) for each in entries]
