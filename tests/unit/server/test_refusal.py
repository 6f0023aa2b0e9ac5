from __future__ import annotations

import json
import traceback

import pytest

from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason
from multimodal_server.refusal import MARK, Refusal
from multimodal_server.triton_model import REFUSAL


def as_pytriton_prints_it(failure: Failure) -> str:
    with pytest.raises(Refusal) as caught:
        raise Refusal(failure)
    error = caught.value
    return "".join(traceback.format_exception(None, error, error.__traceback__))


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.REQUEST_REFUSED, "INVALID_ARG"),
        (Reason.SERVER_BUSY, "UNAVAILABLE"),
        (Reason.SHUTTING_DOWN, "UNAVAILABLE"),
        (Reason.SERVER_FAILED, "INTERNAL"),
        (Reason.INTERNAL, "INTERNAL"),
    ],
)
@pytest.mark.parametrize("problem", ['is "x" {y}', "two\nlines", "ends in }", "é \N{GRINNING FACE}"])
def test_a_failure_arrives_with_code_and_text(reason: Reason, code: str, problem: str) -> None:
    failure = Failure(reason=reason, at="field", problem=problem, remedy="do this")
    found = REFUSAL.search(as_pytriton_prints_it(failure))
    assert found is not None
    assert json.loads(found[1]) == {"code": code, "message": f"{reason}: field: {problem}; do this"}


def test_no_stack_is_printed() -> None:
    printed = as_pytriton_prints_it(Failure(reason=Reason.INTERNAL, at="a", problem="b", remedy="c"))
    assert "Traceback" not in printed
    assert "File" not in printed


def test_both_sides_know_the_same_mark() -> None:
    assert REFUSAL.pattern.startswith(MARK)
