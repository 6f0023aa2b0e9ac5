"""Places in a video: seconds in text, and the tokens that LITA and VITA were trained to read and write."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from multimodal_recipes.recipe import TimeTokens

_SECONDS: Final = re.compile(r"<(\d+(?:\.\d+)?)>")
_TOKEN: Final = re.compile(r"<t(0|[1-9][0-9]*)>")


def token_for(times: TimeTokens, seconds: float, *, duration: float) -> str:
    """Give the token of a moment; one beyond the video's end is its end.

    Args:
        times: The model's.
        seconds: From the beginning.
        duration: Of the video, in seconds, more than 0.
    """
    last = times.count - 1
    return f"<t{min(last, max(0, round(last * min(seconds, duration) / duration)))}>"


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


class TimeStream:
    """`decode_times` of a text that comes in pieces: whole, it gives the same, and nothing is ever taken back."""

    def __init__(self, times: TimeTokens, duration: float) -> None:
        """Begin.

        Args:
            times: The model's.
            duration: Of the video, in seconds.
        """
        self._times = times
        self._duration = duration
        digits = len(str(times.count - 1))
        self._begun = re.compile(rf"<(?:t(?:0|[1-9][0-9]{{0,{digits - 1}}})?)?\Z")
        self._held = ""

    def push(self, text: str) -> str:
        """Add a piece and give what is now certain: what may be the beginning of a token is held back."""
        text = self._held + text
        begun = self._begun.search(text)
        self._held = text[begun.start() :] if begun else ""
        return decode_times(self._times, text.removesuffix(self._held), duration=self._duration)

    def finish(self) -> str:
        """Give what was held back, now that nothing follows: it was the beginning of no token."""
        held, self._held = self._held, ""
        return held
