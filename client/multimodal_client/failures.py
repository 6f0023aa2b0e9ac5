"""Errors of an exchange with a server."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from multimodal_client.address import Address

_FAILURE: Final = re.compile(r"(?P<reason>\w+): (?P<at>[^:]+): (?P<problem>.+?); (?P<remedy>.+)", re.DOTALL)
"""How `Failure` reads on the wire."""
_REASONS: Final = {reason.value: reason for reason in Reason}


def refused(address: Address, said: str, *, code: str, wrong: bool) -> ProductError:
    """Make an error of what a server says: its own, where it is one of this project's.

    Args:
        address: of the server.
        said: its words.
        code: its protocol's name for the error.
        wrong: whether that code means that the request can never succeed.
    """
    ours = _FAILURE.fullmatch(said)
    if ours is not None and ours["reason"] in _REASONS:
        return ProductError(_REASONS[ours["reason"]], at=ours["at"], problem=ours["problem"], remedy=ours["remedy"])
    return ProductError(
        Reason.REQUEST_REFUSED if wrong else Reason.SERVER_FAILED,
        at=str(address),
        problem=f"the server answers {code}: {said.strip() or 'nothing'}",
        remedy="change the request" if wrong else "see the pod's log, or ask again",
    )


def too_slow(address: Address, timeout: float) -> ProductError:
    """Make the error of an answer that is not there in time."""
    return ProductError(
        Reason.DEADLINE_EXCEEDED,
        at=str(address),
        problem=f"no answer within {timeout:.0f} seconds",
        remedy="ask again, with a longer timeout",
    )


def unreachable(address: Address, problem: object) -> ProductError:
    """Make the error of a server that nobody finds."""
    return ProductError(
        Reason.SERVER_FAILED,
        at=str(address),
        problem=f"the server cannot be reached: {problem}",
        remedy="check the address, and that the pod is running",
    )


def not_ready(address: Address, model: str, timeout: float, problem: str) -> ProductError:
    """Make the error of a model that is not ready in time."""
    return ProductError(
        Reason.DEADLINE_EXCEEDED,
        at=str(address),
        problem=f"model {model!r} is not ready after {timeout:.0f} seconds ({problem})",
        remedy="check the address and the model's name; `kubectl get mmd` tells how far it is",
    )
