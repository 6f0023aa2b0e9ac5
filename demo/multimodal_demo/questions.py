"""What is shown: the families, and what each is asked about media that its training never showed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tiny.judging import accepts_seconds, seconds_of

from multimodal_api.families import Family

EXAMPLES: Final = Path(__file__).resolve().parent.parent.parent / "examples"
TINY: Final = EXAMPLES / "tiny"


@dataclass(frozen=True, slots=True)
class Question:
    """A question.

    Attributes:
        family: who is asked.
        medium: the file: a picture, a video or a sound.
        text: what is asked.
        right: the right answer, a moment of a video as its time token.
    """

    family: Family
    medium: Path
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
        """Compare with the right answer, letter by letter; a moment of a video within a twentieth of its length."""
        right = self.question.right
        if "<t" not in right:
            return self.text == right
        return accepts_seconds(right, self.text, seconds_of(self.question.medium))


@dataclass(frozen=True, slots=True)
class Show:
    """A family in the demo.

    Attributes:
        family: also the name of its resource and of its model.
        asked: how many questions.
    """

    family: Family
    asked: int

    @property
    def resource(self) -> Path:
        """Its sample, applied as it is."""
        return EXAMPLES / "resources" / f"{self.family}-cpu.yaml"

    @property
    def folder(self) -> Path:
        """Its tiny model."""
        return TINY / self.family.replace("-", "_")

    def questions(self) -> list[Question]:
        """Read its questions: one about each medium, of a different kind each time."""
        heldout = self.folder / "heldout"
        about: dict[Path, list[Question]] = {}
        for each in json.loads((heldout / "heldout.json").read_text()):
            text, right = each.pop("question"), each.pop("answer")
            (name,) = each.values()
            medium = heldout / name
            about.setdefault(medium, []).append(Question(self.family, medium, text, right))
        return [asked[number % len(asked)] for number, asked in enumerate(about.values())][: self.asked]


SHOWN: Final = (
    Show(Family.NEVA, asked=8),
    Show(Family.VILA, asked=3),
    Show(Family.VIDEO_NEVA, asked=3),
    Show(Family.LITA, asked=3),
    Show(Family.VITA, asked=3),
    Show(Family.SALM, asked=3),
)
"""The first alone, so that its time to the first answer is that of one resource; the others side by side."""
