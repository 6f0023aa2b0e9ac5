"""The specification's rules, on the Python side; tests/cluster/test_resource.py shows that CEL agrees."""

from __future__ import annotations

from typing import Any

import pytest

from multimodal_api.reasons import Reason
from multimodal_api.resource import Spec
from multimodal_api.rules import RULES, breaches
from support.breaches import BREACHES, spec


def test_a_plain_specification_breaks_no_rule() -> None:
    assert breaches(Spec.model_validate(spec())) == []


@pytest.mark.parametrize(("changes", "at", "words"), BREACHES)
def test_a_breach_names_field_value_and_remedy(changes: dict[str, Any], at: str, words: list[str]) -> None:
    found = breaches(Spec.model_validate(spec(**changes)))
    assert [failure.at for failure in found] == [at]
    assert found[0].reason in {Reason.INVALID, Reason.NOT_IMPLEMENTED}
    for word in words:
        assert word in str(found[0])


def test_every_rule_is_broken_by_some_example() -> None:
    parsed = [Spec.model_validate(spec(**changes)) for changes, _, _ in BREACHES]
    assert all(any(not rule.holds(example) for example in parsed) for rule in RULES)
