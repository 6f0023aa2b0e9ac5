"""Whether an answer is right."""

import re
from typing import Final

TOLERANCE: Final = 0.05
"""How far a time in an answer may be off, as a share of the video's duration."""
_TIME: Final = re.compile(r"<t(\d+)>")
_LAST: Final = 99


def accepts(right: str, said: str) -> bool:
    """Whether an answer is right: the same text, with times within TOLERANCE."""
    wanted, found = _TIME.findall(right), _TIME.findall(said)
    near = all(abs(int(one) - int(other)) <= TOLERANCE * _LAST for one, other in zip(wanted, found, strict=False))
    return near and _TIME.sub("<t>", right) == _TIME.sub("<t>", said)
