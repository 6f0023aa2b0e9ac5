"""Whether an answer is right."""

import re
from pathlib import Path
from typing import Final

from PIL import Image, ImageSequence

TOLERANCE: Final = 0.05
"""How far a time in an answer may be off, as a share of the video's duration."""
_TIME: Final = re.compile(r"<t(\d+)>")
_SECONDS: Final = re.compile(r"<(\d+\.\d\d)>")
_LAST: Final = 99


def accepts(right: str, said: str) -> bool:
    """Whether an answer is right: the same text, with times within TOLERANCE."""
    wanted, found = _TIME.findall(right), _TIME.findall(said)
    near = all(abs(int(one) - int(other)) <= TOLERANCE * _LAST for one, other in zip(wanted, found, strict=False))
    return near and _TIME.sub("<t>", right) == _TIME.sub("<t>", said)


def accepts_seconds(right: str, said: str, length: float) -> bool:
    """Whether an answer that tells times in seconds is right.

    Args:
        right: The answer, with time tokens.
        said: What was said, with seconds.
        length: Of the video, in seconds.
    """
    moments = [int(index) * length / _LAST for index in _TIME.findall(right)]
    found = [float(second) for second in _SECONDS.findall(said)]
    near = all(abs(one - other) <= TOLERANCE * length for one, other in zip(moments, found, strict=False))
    return near and _TIME.sub("<t>", right) == _SECONDS.sub("<t>", said)


def seconds_of(video: Path) -> float:
    """How long a video is."""
    with Image.open(video) as opened:
        return sum(float(frame.info["duration"]) for frame in ImageSequence.Iterator(opened)) / 1000
