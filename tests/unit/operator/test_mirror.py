"""What arrives late, twice or never does not confuse the memory; and everyone concerned is named."""

from __future__ import annotations

from typing import Any

from multimodal_api import labels
from multimodal_operator.kinds import JOB, POD, RESOURCE, SERVICE, Json
from multimodal_operator.mirror import Mirror
from multimodal_operator.want import store_digest
from support.snapshots import MODEL

SHARED = store_digest("shared")


def obj(name: str, version: int, uid: str = "u", **meta: Any) -> Json:
    return {"metadata": {"name": name, "namespace": "n", "uid": uid, "resourceVersion": str(version), **meta}}


def resource(name: str, version: int = 1, *, store: str = "shared", **spec: Any) -> Json:
    made = obj(name, version, f"uid-{name}", creationTimestamp="2026-11-23T12:00:00Z")
    return made | {"spec": {"numGpus": 0, "model": MODEL, "engineStore": {"claimName": store}, **spec}}


def child(name: str, version: int, *, instance: str = "a", **extra: str) -> Json:
    return obj(name, version, labels={labels.LABEL_INSTANCE: instance, **extra})


def test_what_is_older_or_known_is_no_news() -> None:
    mirror = Mirror()
    assert mirror.put(SERVICE, child("s", 5)) == {("n", "a")}
    assert mirror.put(SERVICE, child("s", 5)) == set()
    assert mirror.put(SERVICE, child("s", 4)) == set()
    assert mirror.put(SERVICE, child("s", 6)) == {("n", "a")}


def test_a_late_deletion_does_not_hit_the_successor() -> None:
    mirror = Mirror()
    mirror.put(SERVICE, child("s", 1))
    mirror.put(SERVICE, child("s", 9) | {"metadata": child("s", 9)["metadata"] | {"uid": "second"}})
    assert mirror.drop(SERVICE, child("s", 5)) == set()
    assert mirror.get(SERVICE, "n", "s") is not None


def test_a_full_list_finds_what_is_gone_and_spares_what_is_newer() -> None:
    mirror = Mirror()
    mirror.put(SERVICE, child("gone", 1, instance="a"))
    mirror.put(SERVICE, child("made since", 8, instance="b"))
    elsewhere = child("elsewhere", 1)
    elsewhere["metadata"]["namespace"] = "m"
    mirror.put(SERVICE, elsewhere)
    assert mirror.replace(SERVICE, [child("new", 3, instance="c")], 5, "n") == {("n", "a"), ("n", "c")}
    assert mirror.get(SERVICE, "n", "gone") is None
    assert mirror.get(SERVICE, "n", "made since") is not None
    assert mirror.get(SERVICE, "m", "elsewhere") is not None


def test_our_own_deletion_is_known_before_the_watch_tells() -> None:
    mirror = Mirror()
    mirror.put(JOB, child("j", 1))
    mirror.mark_deleting(JOB, "n", "j", "2026-11-23T12:00:00Z")
    found = mirror.get(JOB, "n", "j")
    assert found is not None
    assert found["metadata"]["deletionTimestamp"]
    assert mirror.drop(JOB, child("j", 1)) == {("n", "a")}


def test_those_who_share_a_store_hear_of_each_other_and_of_its_jobs() -> None:
    mirror = Mirror()
    mirror.put(RESOURCE, resource("a"))
    assert mirror.put(RESOURCE, resource("b", 2)) == {("n", "a"), ("n", "b")}
    assert mirror.put(RESOURCE, resource("c", 3, store="other")) == {("n", "c")}
    work = child("j", 4, **{labels.LABEL_ENGINE_STORE: SHARED})
    assert mirror.put(JOB, work) == {("n", "a"), ("n", "b")}
    assert [peer.name for peer in mirror.peers("n", SHARED, "a")] == ["b"]
    assert mirror.put(RESOURCE, resource("b", 5, store="other")) == {("n", "a"), ("n", "b"), ("n", "c")}
    assert mirror.peers("n", SHARED, "a") == ()
    assert mirror.drop(RESOURCE, resource("b", 6, store="other")) == {("n", "b"), ("n", "c")}
    assert mirror.peers("n", store_digest("other"), "c") == ()


def test_peers_that_sleep_or_go_build_nothing() -> None:
    mirror = Mirror()
    mirror.put(RESOURCE, resource("a", suspend=True))
    going = resource("b", 2)
    going["metadata"]["deletionTimestamp"] = "2026-11-23T12:00:00Z"
    mirror.put(RESOURCE, going)
    assert [peer.builds for peer in mirror.peers("n", SHARED, "")] == [False, False]


def test_pods_are_found_by_owner_and_by_resource() -> None:
    mirror = Mirror()
    pod = child("p", 1)
    pod["metadata"]["ownerReferences"] = [{"uid": "job-1", "controller": True}]
    mirror.put(POD, pod)
    assert [found["metadata"]["name"] for found in mirror.pods("n", "job-1")] == ["p"]
    assert [found["metadata"]["name"] for found in mirror.pods("n", "instance/a")] == ["p"]
    mirror.drop(POD, pod)
    assert mirror.pods("n", "job-1") == []


def test_bookkeeping_of_the_api_server_is_not_kept() -> None:
    mirror = Mirror()
    mirror.put(SERVICE, obj("s", 1, managedFields=[{"manager": "somebody"}]))
    found = mirror.get(SERVICE, "n", "s")
    assert found is not None
    assert "managedFields" not in found["metadata"]


def test_a_specification_that_cannot_be_read_is_kept_and_shares_nothing() -> None:
    mirror = Mirror()
    strange = resource("a")
    strange["spec"]["colour"] = "red"
    assert mirror.put(RESOURCE, strange) == {("n", "a")}
    assert mirror.resources() == [("n", "a")]
    assert mirror.peers("n", SHARED, "") == ()
