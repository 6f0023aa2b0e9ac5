"""The fake API server of `tests/faults` answers as the real one does: one script, run against both."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from faults.fake_api import FakeApi

from multimodal_operator.kinds import CLAIM, DEPLOYMENT, JOB, RESOURCE, SERVICE, SERVICE_ACCOUNT, Json, Kind
from multimodal_operator.kube import Kube, KubeError, Transport
from multimodal_operator.transport import HttpTransport
from support.platform import apply, kubectl
from support.product import CRD, SPEC

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

NAMESPACE = f"fake-{os.getpid()}"


class Script:
    """Runs calls and notes how each went, in words that do not depend on the server."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.kube = Kube(transport)
        self.notes: list[object] = []

    async def note(self, call: Awaitable[Any], *fields: str) -> Json:
        """Note an error's code and reason, or the named fields of the answer."""
        try:
            answer = await call
        except KubeError as error:
            self.notes.append((error.code, error.reason))
            return {}
        found: Json = answer or {}
        self.notes.append([_at(found, field) for field in fields])
        return found

    async def as_somebody(self, kind: Kind, name: str, patch: Json) -> Json:
        """Change an object under another field manager."""

        answer = await self.transport.exchange(
            "PATCH",
            kind.path(NAMESPACE, name),
            query={"fieldManager": "somebody"},
            media_type="application/merge-patch+json",
            body=json.dumps(patch).encode(),
        )
        self.notes.append(answer.code)
        return answer.body


def _at(obj: Any, field: str) -> Any:
    for part in field.split("."):
        obj = obj.get(part) if isinstance(obj, dict) else obj[int(part)] if obj else None
    return obj


def obj(kind: Kind, name: str, **rest: Any) -> Json:
    meta = {"name": name, "namespace": NAMESPACE, **rest.pop("metadata", {})}
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": meta, **rest}


def ports(*numbers: int) -> list[Json]:
    return [{"name": f"p{at}", "port": number, "protocol": "TCP"} for at, number in enumerate(numbers)]


POD = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "none", "resources": {}}]}}


async def services(script: Script) -> None:
    kube, note = script.kube, script.note
    one = obj(SERVICE, "s", spec={"ports": ports(1, 2), "selector": {"a": "b"}})
    first = await note(kube.apply(SERVICE, one, force=False), "spec.ports.0.port", "spec.selector")
    again = await note(kube.apply(SERVICE, one, force=False), "spec.selector")
    script.notes.append(first["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"])
    # What we no longer say goes, what others say stays, and they are asked before something is taken from them.
    await script.as_somebody(SERVICE, "s", {"spec": {"selector": {"c": "d"}}, "metadata": {"labels": {"x": "y"}}})
    await note(
        kube.apply(SERVICE, obj(SERVICE, "s", spec={"ports": ports(1, 2)}), force=False),
        "spec.selector",
        "metadata.labels",
    )
    await script.as_somebody(SERVICE, "s", {"spec": {"selector": {"c": "other"}}})
    await note(
        kube.apply(SERVICE, obj(SERVICE, "s", spec={"ports": ports(1, 2), "selector": {"c": "mine"}}), force=False)
    )
    await note(
        kube.apply(SERVICE, obj(SERVICE, "s", spec={"ports": ports(1, 2), "selector": {"c": "mine"}}), force=True),
        "spec.selector",
    )
    # Items of a list are told apart by number and protocol: a hand-made port of our name stands in our way.
    await script.as_somebody(SERVICE, "s", {"spec": {"ports": [{"name": "p0", "port": 9, "protocol": "TCP"}]}})
    await note(kube.apply(SERVICE, obj(SERVICE, "s", spec={"ports": ports(1, 2)}), force=True))
    await note(kube.merge(SERVICE, NAMESPACE, "s", {"spec": {"ports": ports(1, 2)}}), "spec.ports.0.port")
    found = await note(kube.apply(SERVICE, obj(SERVICE, "s", spec={"ports": ports(1, 2)}), force=True))
    script.notes.append([port["port"] for port in found["spec"]["ports"]])


async def resources(script: Script) -> None:
    kube, note = script.kube, script.note
    made = await note(kube.create(RESOURCE, obj(RESOURCE, "r", spec=SPEC)), "metadata.generation", "status")
    await note(kube.create(RESOURCE, obj(RESOURCE, "r", spec=SPEC)))
    status = obj(RESOURCE, "r", status={"phase": "Ready", "url": "u"})
    await note(kube.apply(RESOURCE, status, force=True, subresource="status"), "metadata.generation", "status.phase")
    shorter = obj(RESOURCE, "r", status={"phase": "Failed"})
    await note(kube.apply(RESOURCE, shorter, force=True, subresource="status"), "status.phase", "status.url")
    await note(kube.apply(RESOURCE, obj(RESOURCE, "q", status={}), force=True, subresource="status"))
    # The main resource ignores the status, and the specification's change is a generation.
    edit = {"spec": {"suspend": True}, "status": {"phase": "Ready"}}
    await note(kube.merge(RESOURCE, NAMESPACE, "r", edit), "metadata.generation", "status.phase", "spec.suspend")
    await note(kube.merge(RESOURCE, NAMESPACE, "r", {"metadata": {"labels": {"a": "b"}}}), "metadata.generation")
    stale = {
        "metadata": {"resourceVersion": made["metadata"]["resourceVersion"], "finalizers": ["multimodal.dev/cleanup"]}
    }
    await note(kube.merge(RESOURCE, NAMESPACE, "r", stale))
    await note(
        kube.merge(RESOURCE, NAMESPACE, "r", {"metadata": {"finalizers": ["multimodal.dev/cleanup"]}}),
        "metadata.finalizers",
    )
    await kube.delete(RESOURCE, NAMESPACE, "r", made["metadata"]["uid"])
    found = await note(kube.get(RESOURCE, NAMESPACE, "r"), "metadata.generation")
    script.notes.append("deletionTimestamp" in found["metadata"])
    await note(kube.merge(RESOURCE, NAMESPACE, "r", {"metadata": {"finalizers": []}}), "metadata.name")
    await note(kube.get(RESOURCE, NAMESPACE, "r"), "metadata")


async def others(script: Script) -> None:
    kube, note = script.kube, script.note
    job = obj(JOB, "j", spec={"suspend": True, "template": POD}, metadata={"labels": {"mine": "yes"}})
    made = await note(kube.create(JOB, job), "metadata.labels.mine", "metadata.generation")
    await note(kube.create(JOB, job))
    await kube.delete(JOB, NAMESPACE, "j", "another-uid")
    await note(kube.get(JOB, NAMESPACE, "j"), "metadata.name")
    items, _version = await kube.list(JOB, NAMESPACE, labels="mine=yes")
    script.notes.append([item["metadata"]["name"] for item in items])
    script.notes.append((await kube.list(JOB, NAMESPACE, labels="mine=no"))[0])
    await kube.delete(JOB, NAMESPACE, "j", made["metadata"]["uid"])
    await note(kube.get(JOB, NAMESPACE, "j"), "metadata")

    size = {"resources": {"requests": {"storage": "1Gi"}}}
    await note(
        kube.apply(CLAIM, obj(CLAIM, "c", spec={"accessModes": ["ReadWriteOnce"], **size}), force=False),
        "spec.accessModes",
    )
    await note(kube.apply(CLAIM, obj(CLAIM, "c", spec={"accessModes": ["ReadWriteMany"], **size}), force=True))
    labels = {"matchLabels": {"a": "b"}}
    pod = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": POD["spec"]["containers"]}}
    await note(
        kube.apply(
            DEPLOYMENT, obj(DEPLOYMENT, "d", spec={"replicas": 0, "selector": labels, "template": pod}), force=False
        ),
        "spec.replicas",
        "metadata.generation",
    )
    other = {"matchLabels": {"a": "c"}}
    moved = {"metadata": {"labels": {"a": "c"}}, "spec": pod["spec"]}
    await note(
        kube.apply(
            DEPLOYMENT, obj(DEPLOYMENT, "d", spec={"replicas": 0, "selector": other, "template": moved}), force=True
        )
    )
    env = {
        "metadata": pod["metadata"],
        "spec": {"containers": [{**POD["spec"]["containers"][0], "env": [{"name": "A", "value": "1"}]}]},
    }
    found = await note(
        kube.apply(
            DEPLOYMENT, obj(DEPLOYMENT, "d", spec={"replicas": 0, "selector": labels, "template": env}), force=True
        ),
        "metadata.generation",
    )
    script.notes.append(_at(found, "spec.template.spec.containers.0.env"))
    found = await note(
        kube.apply(DEPLOYMENT, obj(DEPLOYMENT, "d", spec={"selector": labels, "template": pod}), force=True),
        "metadata.generation",
    )
    script.notes.append(_at(found, "spec.template.spec.containers.0.env"))
    await note(kube.get(SERVICE_ACCOUNT, NAMESPACE, "nobody"))
    await note(kube.merge(SERVICE_ACCOUNT, NAMESPACE, "nobody", {}))


@pytest.fixture(scope="module", autouse=True)
def _own_namespace() -> Iterator[None]:
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    yield
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(name="real")
async def _real() -> AsyncIterator[Script]:
    script = Script(HttpTransport())
    yield script
    await script.kube.close()


@pytest.mark.parametrize("part", [services, resources, others], ids=lambda part: part.__name__)
async def test_the_fake_answers_as_the_real_one(part: Callable[[Script], Awaitable[None]], real: Script) -> None:
    fake = Script(FakeApi(lambda: datetime.now(UTC)))
    await part(real)
    await part(fake)
    for at, (theirs, ours) in enumerate(zip(real.notes, fake.notes, strict=True)):
        assert ours == theirs, f"note {at} of {real.notes}"
