"""How an error of ours travels through PyTriton, which knows only exceptions and prints them with their stack.

The front raises a `Refusal`; PyTriton formats it as a traceback and sends that text to Triton's process; there,
`triton_model.py` finds the line made here and answers with its message and code alone.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from multimodal_api.errors import Failure

MARK: Final = "multimodal-refusal:"
"""`triton_model.py` holds the same word; a test compares."""

_CODES: Final = {
    Reason.REQUEST_REFUSED: "INVALID_ARG",
    Reason.SERVER_BUSY: "UNAVAILABLE",
    Reason.SHUTTING_DOWN: "UNAVAILABLE",
    Reason.DEADLINE_EXCEEDED: "UNAVAILABLE",
    Reason.OUT_OF_GPU_MEMORY: "UNAVAILABLE",
}
"""Names of Triton's error codes; what is not here is INTERNAL. Over HTTP: 400, 503, 500."""


class Refusal(Exception):  # noqa: N818 -- its name stands in what PyTriton prints
    """An error whose text is one line of JSON."""

    __traceback__ = property(lambda _: None, lambda _, __: None)  # PyTriton would print it

    def __init__(self, failure: Failure) -> None:
        super().__init__(MARK + json.dumps(words(failure)))


def words(failure: Failure) -> dict[str, str]:
    """Say what Triton is told of a failure: one of its codes, and a message."""
    return {"code": _CODES.get(failure.reason, "INTERNAL"), "message": f"{failure.reason}: {failure}"}
