"""The three ways in which a checkpoint's files can be wrong."""

from __future__ import annotations

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

COPY_AGAIN = "copy the checkpoint again and compare its size and checksum with the source"


def unreadable(at: str, problem: str, remedy: str = COPY_AGAIN) -> ProductError:
    """Make the error of a file that is truncated, damaged or not what its name says."""
    return ProductError(Reason.CHECKPOINT_UNREADABLE, at=at, problem=problem, remedy=remedy)


def unsafe(at: str, problem: str) -> ProductError:
    """Make the error of a file that could do something else than hold data."""
    return ProductError(
        Reason.CHECKPOINT_UNSAFE,
        at=at,
        problem=problem,
        remedy="do not trust this file: get the checkpoint from its author, or write it again with NeMo",
    )


def not_found(at: str, problem: str, remedy: str) -> ProductError:
    """Make the error of a file that should be there and is not."""
    return ProductError(Reason.CHECKPOINT_NOT_FOUND, at=at, problem=problem, remedy=remedy)
