"""The three ways in which a checkpoint's files can be wrong."""

from __future__ import annotations

import reprlib

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxlong = _SHORT.maxstring = _SHORT.maxother = 60

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


def shown(value: object) -> str:
    """Give a value that came out of a file, short: a small file can hold a value whose text is endless."""
    return _SHORT.repr(value)
