"""Media rows into prompt embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from torch import Tensor


class SpanMismatchError(ProductError):
    """A prompt has another number of media positions than the encoder gave rows."""

    def __init__(self, positions: int, rows: int) -> None:
        super().__init__(
            Reason.INTERNAL,
            at="splice",
            problem=f"{positions} media positions in the prompt, {rows} rows from the media encoder",
            remedy="report it: prompt layout and preprocessing of this model's recipe disagree",
        )


def splice(text: Tensor, media: Tensor, at: Tensor) -> Tensor:
    """Put media rows where the placeholder spans stand.

    Args:
        text: [tokens, hidden] embeddings of the prompt, placeholders included.
        media: [media_tokens, hidden] projector output, all spans concatenated in order.
        at: [media_tokens] positions in `text`, out of band: a genuine token id 0 is never taken for a placeholder.

    Returns:
        [tokens, hidden], same dtype as `text`.

    Raises:
        SpanMismatchError: `at` and `media` differ in length (a template and a preprocessor that disagree).
    """
    if at.shape[0] != media.shape[0]:
        raise SpanMismatchError(at.shape[0], media.shape[0])
    return text.index_copy(0, at.to(text.device), media.to(text))
