"""The tokenizer of a canonical model: prompts to ids, and ids to text as they arrive."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_recipes.prompt import FILLER, MediaSlot, Prompt, Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

TOKENIZER_NAME: Final = "tokenizer.json"
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """`tokenizer.json`, with one mark of our own that cuts the text where media stands.

    A special token in the text keeps what stands before and behind it from being merged, as the placeholder tokens did
    in training. The mark is such a token, random for each process; the vocabulary on disk does not know it, no user can
    write it, and it never leaves this class as an id.
    """

    def __init__(self, source: Path | bytes, *, add_bos: bool) -> None:
        """Load.

        Args:
            source: `tokenizer.json`, or what will stand in it.
            add_bos: whether the beginning-of-sequence token stands in front of a prompt.

        Raises:
            ProductError: the file is missing or damaged.
        """
        try:
            self._tokenizer = (
                FastTokenizer.from_buffer(source) if isinstance(source, bytes) else FastTokenizer.from_file(str(source))
            )
        except Exception as error:  # tokenizers raises Exception itself, for a missing file as for a damaged one
            raise ProductError(
                Reason.ENGINE_CORRUPT,
                at=TOKENIZER_NAME if isinstance(source, bytes) else str(source),
                problem=f"no usable tokenizer: {error}",
                remedy="delete the engine's folder; the operator builds it again",
            ) from error
        self._add_bos = add_bos
        self._mark = f"<|media:{secrets.token_hex(16)}|>"
        self._tokenizer.add_special_tokens([AddedToken(self._mark, normalized=False, special=True)])

    def encode(self, parts: Iterable[str | MediaSlot]) -> Prompt:
        """Make token ids of text and media.

        The whole prompt is encoded at once, so that rules for the beginning of a text apply once. A media slot is known
        by its place in the text, never by an id.
        """
        text, slots = "", dict[int, MediaSlot]()
        for part in parts:
            if isinstance(part, MediaSlot):
                slots[len(text)] = part
                text += self._mark
            else:
                text += part
        encoding = self._tokenizer.encode(text, add_special_tokens=self._add_bos)
        ids: list[int] = []
        media: list[Span] = []
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            slot = slots.get(start) if end - start == len(self._mark) else None
            if slot is None:
                ids.append(token)
            else:
                media.append(Span(len(ids), slot.rows))
                ids.extend([FILLER] * slot.rows)
        return Prompt(tuple(ids), tuple(media))

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_text(self, token: int) -> str:
        """Give the text of one token, special ones too."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def stop_ids(self, strings: Iterable[str]) -> frozenset[int]:
        """Give the ids of those stop strings that are one token: special tokens have no text that could be searched."""
        ids = (self._tokenizer.token_to_id(string) for string in strings)
        return frozenset(token for token in ids if token is not None)


class TextStream:
    """Text of one answer, as its tokens arrive, up to the first stop string.

    What is given out never has to be taken back: bytes that are not a whole character yet, and text that may turn out
    to be the beginning of a stop string, are held back until more is known.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stop for stop in stop_strings if stop)
        self._ids: list[int] = []
        self._known = 0  # ids before this one stand in _text, and are context for decoding those behind it
        self._context = 0  # ids before this one are not decoded again
        self._text = ""
        self._given = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """All text so far, including what is held back, without a stop string."""
        return self._text

    def push(self, ids: Sequence[int]) -> str:
        """Add tokens and give the text that is now certain; nothing more comes once `stopped` is true."""
        self._ids.extend(ids)
        if self.stopped or not ids:
            return ""
        self._decode()
        self._cut()
        return self._give(len(self._text) if self.stopped else len(self._text) - self._held())

    def finish(self) -> str:
        """Give what was held back, now that no token follows."""
        if not self.stopped:
            self._decode(final=True)
            self._cut()
        return self._give(len(self._text))

    def _decode(self, *, final: bool = False) -> None:
        # A token's text depends on those before it (leading blanks, multi-byte characters): decode both, keep the rest.
        before = self._tokenizer.decode(self._ids[self._context : self._known])
        now = self._tokenizer.decode(self._ids[self._context :])
        if not final and (now.endswith(_REPLACEMENT) or len(now) <= len(before)):
            return
        self._text += now[len(before) :]
        self._context, self._known = self._known, len(self._ids)

    def _cut(self) -> None:
        found = [place for place in map(self._text.find, self._stops) if place >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.stopped = True

    def _held(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stops):
                return length
        return 0

    def _give(self, end: int) -> str:
        start, self._given = self._given, max(self._given, end)
        return self._text[start : self._given]
