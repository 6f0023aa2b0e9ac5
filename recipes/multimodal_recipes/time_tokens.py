"""Places in a video: seconds in text, and the tokens that LITA and VITA were trained to read and write."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from multimodal_recipes.recipe import TimeTokens

_SECONDS: Final = re.compile(r"<(\d+(?:\.\d+)?)>")
_TOKEN: Final = re.compile(r"<t(\d+)>")


def token_for(times: TimeTokens, seconds: float, *, duration: float) -> str:
    """Give the token of a moment; one beyond the video's end is its end.

    Args:
        times: The model's.
        seconds: From the beginning.
        duration: Of the video, in seconds, more than 0.
    """
    last = times.count - 1
    return f"<t{min(last, max(0, round(last * seconds / duration)))}>"


def encode_times(times: TimeTokens, text: str, *, duration: float) -> str:
    """Replace seconds in angle brackets, such as `<3.25>`, by time tokens, as in training."""
    return _SECONDS.sub(lambda match: token_for(times, float(match[1]), duration=duration), text)


def decode_times(times: TimeTokens, text: str, *, duration: float) -> str:
    """Replace time tokens by seconds in angle brackets with two decimals; what is no token of the model stays."""
    last = times.count - 1

    def seconds(match: re.Match[str]) -> str:
        index = int(match[1])
        return f"<{index * duration / last:.2f}>" if index <= last else match[0]

    return _TOKEN.sub(seconds, text)
