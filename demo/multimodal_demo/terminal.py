"""Media in a terminal: pictures as two pixels per character, the upper one in the letter's colour; sounds as bars."""

from __future__ import annotations

import os
import sys
import wave
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageSequence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

COLUMNS: Final = 20
FRAMES: Final = 4
"""Of a video, evenly spread from the first to the last."""
FRAME_COLUMNS: Final = 12
SOUND_COLUMNS: Final = 48
SOUND_LINES: Final = 3
UPPER: Final = "▀"
BARS: Final = " ▁▂▃▄▅▆▇█"
RESET: Final = "\x1b[0m"


def shows_colours() -> bool:
    """Tell whether the output is a terminal whose user did not decline colours (the convention of NO_COLOR)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def draw(file: Path) -> list[str]:
    """Draw a medium as lines of text."""
    return _DRAWN[file.suffix](file)


def picture(file: Path, columns: int = COLUMNS) -> list[str]:
    """Draw a picture: a pixel per column, two per line."""
    with Image.open(file) as opened:
        return _drawn(opened.convert("RGB"), columns)


def video(file: Path) -> list[str]:
    """Draw some frames of a video, side by side."""
    with Image.open(file) as opened:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(opened)]
    chosen = [frames[round(place)] for place in np.linspace(0, len(frames) - 1, FRAMES)]
    return [" ".join(lines) for lines in zip(*(_drawn(frame, FRAME_COLUMNS) for frame in chosen), strict=True)]


def sound(file: Path) -> list[str]:
    """Draw how loud a sound is, from its beginning to its end."""
    with wave.open(str(file)) as opened:
        samples = np.frombuffer(opened.readframes(opened.getnframes()), "<i2").astype(np.int32)
    peaks = np.array([np.abs(part).max() for part in np.array_split(samples, SOUND_COLUMNS)])
    last = len(BARS) - 1
    heights = np.ceil(peaks / max(1, peaks.max()) * last * SOUND_LINES).astype(int)
    return [
        "".join(BARS[min(last, max(0, height - last * below))] for height in heights)
        for below in reversed(range(SOUND_LINES))
    ]


_DRAWN: Final[dict[str, Callable[[Path], list[str]]]] = {".png": picture, ".gif": video, ".wav": sound}


def beside(left: Sequence[str], right: Sequence[str]) -> str:
    """Set lines of text beside a picture, in its middle."""
    above = max(0, (len(left) - len(right)) // 2)
    rows = [(line, right[row - above] if 0 <= row - above < len(right) else "") for row, line in enumerate(left)]
    return "\n".join(f"{line}  {text}" for line, text in rows)


def _drawn(picture: Image.Image, columns: int) -> list[str]:
    lines = max(1, round(columns * picture.height / picture.width / 2))
    small = picture.resize((columns, 2 * lines), Image.Resampling.BOX)
    rows = [small.crop((0, row, columns, row + 1)).tobytes() for row in range(2 * lines)]
    return [_line(upper, lower) for upper, lower in zip(rows[::2], rows[1::2], strict=True)]


def _line(upper: bytes, lower: bytes) -> str:
    cells = [
        f"\x1b[38;2;{r1};{g1};{b1};48;2;{r2};{g2};{b2}m{UPPER}"
        for (r1, g1, b1), (r2, g2, b2) in zip(_triples(upper), _triples(lower), strict=True)
    ]
    return "".join(cells) + RESET


def _triples(row: bytes) -> list[tuple[int, int, int]]:
    return [(row[at], row[at + 1], row[at + 2]) for at in range(0, len(row), 3)]
