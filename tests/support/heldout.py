"""What is asked about media that no training of the tiny models showed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tiny.judging import accepts, accepts_seconds, seconds_of

TINY: Final = Path(__file__).resolve().parents[2] / "examples" / "tiny"


@dataclass(frozen=True)
class Asked:
    """A question about a file."""

    file: Path
    kind: str
    """picture, video or sound."""
    question: str
    answer: str

    @property
    def medium(self) -> bytes:
        """The file's content."""
        return self.file.read_bytes()

    def accepts(self, said: str) -> bool:
        """Whether an answer over Triton is right: times are tokens there."""
        return accepts(self.answer, said)

    def accepts_seconds(self, said: str) -> bool:
        """Whether an answer over the OpenAI port is right: times are seconds there."""
        if "<t" not in self.answer:
            return said == self.answer
        return accepts_seconds(self.answer, said, seconds_of(self.file))


def cases(family: str) -> list[Asked]:
    """All questions of a family's tiny model."""
    folder = TINY / family.replace("-", "_") / "heldout"
    asked = []
    for each in json.loads((folder / "heldout.json").read_text()):
        (kind,) = each.keys() & {"picture", "video", "sound"}
        asked.append(Asked(folder / each[kind], kind, each["question"], each["answer"]))
    return asked
