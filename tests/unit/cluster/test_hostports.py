"""Rules of others stay; ours are found wherever they stand."""

from __future__ import annotations

import pytest

from multimodal_cluster.hostports import jumps, no_pod_is_left

CHAIN = ":CNI-HOSTPORT-DNAT - [0:0]"
POD = ":CNI-DN-0123456789abcdef - [0:0]"
OTHER = "-A PREROUTING -d 10.0.0.1/32 -j DOCKER"
OURS = '-A PREROUTING -m addrtype --dst-type LOCAL -m comment --comment "port forwarding" -j CNI-HOSTPORT-DNAT'


@pytest.mark.parametrize(
    ("rules", "expected"),
    [([], False), ([OTHER], False), ([CHAIN, OURS], True), ([CHAIN, POD, OURS], False)],
    ids=["nothing", "another tool's", "no pod", "a pod"],
)
def test_chains_go_only_when_no_pod_uses_them(rules: list[str], expected: bool) -> None:  # noqa: FBT001 (a table)
    assert no_pod_is_left(rules) is expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [([], []), ([OTHER], []), ([OTHER, OURS], [2]), ([OURS, OTHER, OURS], [3, 1]), ([OURS.replace("PRE", "POST")], [])],
    ids=["nothing", "another tool's", "after another's", "around another's", "another hook's"],
)
def test_rules_are_removed_from_the_end_so_that_numbers_stay_true(rules: list[str], expected: list[int]) -> None:
    assert jumps(rules, "PREROUTING") == expected
