"""Pictures in a terminal: two pixels per character, the upper one in the letter's colour."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLUMNS: Final = 20
UPPER: Final = "▀"
RESET: Final = "\x1b[0m"


def shows_colours() -> bool:
    """Tell whether the output is a terminal whose user did not decline colours (the convention of NO_COLOR)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def picture(file: Path, columns: int = COLUMNS) -> list[str]:
    """Draw a picture as lines of text: a pixel per column, two per line."""
    with Image.open(file) as opened:
        lines = max(1, round(columns * opened.height / opened.width / 2))
        small = opened.convert("RGB").resize((columns, 2 * lines), Image.Resampling.BOX)
    rows = [small.crop((0, row, columns, row + 1)).tobytes() for row in range(2 * lines)]
    return [_line(upper, lower) for upper, lower in zip(rows[::2], rows[1::2], strict=True)]


def beside(left: Sequence[str], right: Sequence[str]) -> str:
    """Set lines of text beside a picture, in its middle."""
    above = max(0, (len(left) - len(right)) // 2)
    rows = [(line, right[row - above] if 0 <= row - above < len(right) else "") for row, line in enumerate(left)]
    return "\n".join(f"{line}  {text}" for line, text in rows)


def _line(upper: bytes, lower: bytes) -> str:
    cells = [
        f"\x1b[38;2;{r1};{g1};{b1};48;2;{r2};{g2};{b2}m{UPPER}"
        for (r1, g1, b1), (r2, g2, b2) in zip(_triples(upper), _triples(lower), strict=True)
    ]
    return "".join(cells) + RESET


def _triples(row: bytes) -> list[tuple[int, int, int]]:
    return [(row[at], row[at + 1], row[at + 2]) for at in range(0, len(row), 3)]
