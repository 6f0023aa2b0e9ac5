"""What is asked about media that no training of the tiny models showed."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageSequence
from tiny.judging import TOLERANCE, accepts

TINY: Final = Path(__file__).resolve().parents[2] / "examples" / "tiny"
_SECONDS: Final = re.compile(r"<(\d+\.\d\d)>")
_TOKEN: Final = re.compile(r"<t(\d+)>")


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
        with Image.open(io.BytesIO(self.medium)) as opened:
            length = sum(frame.info["duration"] for frame in ImageSequence.Iterator(opened)) / 1000
        return is_right(self.answer, said, length)


def cases(family: str) -> list[Asked]:
    """All questions of a family's tiny model."""
    folder = TINY / family.replace("-", "_") / "heldout"
    asked = []
    for each in json.loads((folder / "heldout.json").read_text()):
        (kind,) = each.keys() & {"picture", "video", "sound"}
        asked.append(Asked(folder / each[kind], kind, each["question"], each["answer"]))
    return asked


def is_right(wanted: str, said: str, duration: float) -> bool:
    """Whether an answer in seconds is the listed one in time tokens, within the models' own tolerance."""
    moments = [int(index) * duration / 99 for index in _TOKEN.findall(wanted)]
    found = [float(second) for second in _SECONDS.findall(said)]
    near = all(abs(one - other) <= TOLERANCE * duration for one, other in zip(moments, found, strict=False))
    return near and _TOKEN.sub("<>", wanted) == _SECONDS.sub("<>", said)
