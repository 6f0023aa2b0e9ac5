"""Moments of a video over Triton, where the server is shown frames without times: whoever has the file knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from multimodal_recipes.recipe import TimeTokens
from multimodal_recipes.time_tokens import TimeStream, decode_times, encode_times

TOKENS: Final = TimeTokens(count=100)
"""Of the models of lita and vita: docs/reference/wire.md."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Translates between seconds, such as `<2.5>`, and time tokens."""

    seconds: float | None
    """Length of the video; None where there is none, or nothing is known: then all stays as it is."""

    def asked(self, text: str) -> str:
        """Give a question as the model reads it."""
        return text if self.seconds is None else encode_times(TOKENS, text, duration=self.seconds)

    def told(self, answer: str) -> str:
        """Give an answer as people read it."""
        return answer if self.seconds is None else decode_times(TOKENS, answer, duration=self.seconds)

    def stream(self) -> TimeStream | None:
        """Make what does the same with pieces of an answer."""
        return None if self.seconds is None else TimeStream(TOKENS, self.seconds)
