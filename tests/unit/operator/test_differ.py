"""What the API server fills in or rewrites is no difference; everything else is."""

from __future__ import annotations

from decimal import Decimal

import pytest

from multimodal_operator import quantity
from multimodal_operator.differ import holds, must_apply


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": False, "b": "", "c": {}, "d": []}, {}),
        (
            {"resources": {"limits": {"cpu": "0.5", "memory": "0.5Gi"}}},
            {"resources": {"limits": {"cpu": "500m", "memory": "512Mi"}}},
        ),
        ({"sizeLimit": "1024Mi"}, {"sizeLimit": "1Gi"}),
        ({"env": [{"name": "A", "value": ""}]}, {"env": [{"name": "B"}, {"name": "A"}]}),
        ({"args": ["a", "b"]}, {"args": ["a", "b"]}),
    ],
)
def test_no_difference(part: dict[str, object], whole: dict[str, object]) -> None:
    assert holds(part, whole)


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {}),
        ({"args": ["a"]}, {"args": ["a", "b"]}),
        ({"args": ["a", "b"]}, {"args": ["b", "a"]}),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "2"}]}),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": []}),
        ({"env": [{"name": "A", "value": "500m"}]}, {"env": [{"name": "A", "value": "0.5"}]}),
        ({"resources": {"limits": {"cpu": "1"}}}, {"resources": {"limits": {"cpu": "2"}}}),
        ({"resources": {"limits": {"cpu": "1"}}}, {"resources": None}),
        ({"list": [1]}, {"list": {"0": 1}}),
    ],
)
def test_a_difference(part: dict[str, object], whole: dict[str, object]) -> None:
    assert not holds(part, whole)


def test_a_field_that_is_no_longer_rendered_is_noticed_by_the_digest() -> None:
    before = {"metadata": {"annotations": {"multimodal.dev/applied": "1"}}, "spec": {"a": 1, "b": 2}}
    after = {"metadata": {"annotations": {"multimodal.dev/applied": "2"}}, "spec": {"a": 1}}
    assert holds(after["spec"], before["spec"])
    assert must_apply(after, before)
    assert not must_apply(before, before)
    assert must_apply(before, None)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", "1"),
        ("500m", "0.5"),
        ("1.5k", "1500"),
        ("1Ki", "1024"),
        ("0.5Gi", "536870912"),
        ("2T", "2e12"),
        (".5", "0.5"),
    ],
)
def test_amounts(text: str, number: str) -> None:
    assert quantity.parse(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "one", "1 Gi", "1gi", "-1", "1e3x"])
def test_no_amounts(text: str) -> None:
    assert quantity.parse(text) is None
