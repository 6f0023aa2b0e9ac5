"""Snapshots for tables: a healthy one, and changes to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from multimodal_api.build import BuildReport, Outcome, Stage
from multimodal_api.errors import Failure
from multimodal_api.labels import FINALIZER
from multimodal_api.reasons import Reason
from multimodal_api.resource import Spec
from multimodal_api.status import Status
from multimodal_operator import views
from multimodal_operator.kinds import CLAIM, DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, Json
from multimodal_operator.render import deployment, job, pvc, service, service_account
from multimodal_operator.render.common import seal
from multimodal_operator.settings import Images
from multimodal_operator.snapshot import Claim, Ended, Job, Peer, Pod, Purpose, Resource, Snapshot
from multimodal_operator.want import SERVING, Wanted, resolve, store_digest

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
IMAGES = Images(builder="builder:1", server="server:1")
STORE_UID = "uid-of-the-store"
MODEL = {"type": "neva", "visualCheckpoint": {"pvc": {"claimName": "checkpoints", "path": "neva.nemo"}}}

Change = Callable[[Snapshot], Snapshot]


def resource(**spec: Any) -> Resource:
    """Give a resource on the CPU, with changes at the top of its spec."""
    return Resource(
        name="neva",
        namespace="test",
        uid="uid-of-neva",
        generation=1,
        deleting_since=None,
        finalizers=(FINALIZER,),
        spec=Spec.model_validate({"numGpus": 0, "model": MODEL, **spec}),
        problem=None,
        status=Status(),
    )


def want(one: Resource) -> Wanted:
    """Resolve its specification."""
    assert one.spec is not None
    return resolve(one, one.spec)


def claim(name: str, uid: str = "uid-of-a-claim", **changes: Any) -> Claim:
    """Give a bound claim."""
    plain = Claim(
        name=name,
        uid=uid,
        phase="Bound",
        deleting=False,
        storage_class="fast",
        access_modes=("ReadWriteOnce",),
        size="20Gi",
    )
    return replace(plain, **changes)


def a_job(wanted: Wanted, purpose: Purpose = Purpose.BUILD, **changes: Any) -> Job:
    """Give a Job at work, made by the resource itself."""
    plain = Job(
        name=wanted.job_name(purpose),
        uid=f"uid-of-{purpose}",
        purpose=purpose,
        engine_key=wanted.key,
        store=store_digest(wanted.store),
        owner_uid=wanted.resource.uid,
        owner_name=wanted.name,
        store_uid=STORE_UID,
        template=job.template_digest(wanted, IMAGES, purpose),
        run=1,
        started=NOW,
        finished=None,
        succeeded=False,
        failure=None,
        pods_failed=0,
        deleting=False,
    )
    return replace(plain, **changes)


def a_pod(owner_uid: str, key: str, component: str, **changes: Any) -> Pod:
    """Give a running pod."""
    plain = Pod(
        name=f"pod-of-{owner_uid}",
        uid="uid-of-a-pod",
        owner_uid=owner_uid,
        engine_key=key,
        component=component,
        created=NOW,
        phase="Running",
        ip="192.0.2.1",
        ready=False,
        deleting=False,
        started=True,
        restarts=0,
        unscheduled="",
        waiting=None,
        ended=None,
        evicted="",
    )
    return replace(plain, **changes)


def stored(rendered: Json, **status: Any) -> Json:
    """Give a rendered object as the API server stores it."""
    meta = rendered["metadata"] | {"uid": f"uid-of-{rendered['kind']}", "generation": 1, "resourceVersion": "1"}
    return {**rendered, "metadata": meta, "status": status}


def building(**spec: Any) -> Snapshot:
    """Give a resource whose build is at work, everything before it done."""
    one = resource(**spec)
    wanted = want(one)
    objects = {
        SERVICE_ACCOUNT: service_account.service_account(wanted),
        SERVICE: service.service(wanted),
        CLAIM: pvc.claim(wanted),
    }
    children = {
        (kind.name, obj["metadata"]["name"]): stored(seal(obj))
        for kind, obj in objects.items()
        if kind is not CLAIM or wanted.owns_store
    }
    if wanted.owns_store:
        children[CLAIM.name, wanted.store]["spec"]["storageClassName"] = "fast"  # the cluster's default, filled in
    work = a_job(wanted, wanted.purposes[0])
    return Snapshot(
        resource=one,
        images=IMAGES,
        claims={"checkpoints": claim("checkpoints"), wanted.store: claim(wanted.store, STORE_UID)},
        jobs=(work,),
        pods=(a_pod(work.uid, wanted.key, wanted.purposes[0]),),
        children=children,
    )


def ready(**spec: Any) -> Snapshot:
    """Give a resource that is served."""
    seen = building(**spec)
    wanted = want(seen.resource)
    done = a_job(wanted, succeeded=True, finished=NOW)
    report = BuildReport(key=wanted.key, outcome=Outcome.PUBLISHED, stage=Stage.PUBLISH, size_bytes=7)
    obj = stored(
        seal(deployment.deployment(wanted, IMAGES, store_uid=STORE_UID)),
        observedGeneration=1,
        replicas=wanted.replicas,
        updatedReplicas=wanted.replicas,
        readyReplicas=wanted.replicas,
        availableReplicas=wanted.replicas,
    )
    pods = tuple(
        a_pod("uid-of-a-set", wanted.key, SERVING, name=f"neva-{number}", ready=True)
        for number in range(wanted.replicas)
    )
    return replace(
        seen,
        jobs=(done,),
        pods=pods,
        reports={done.uid: report},
        deployment=views.deployment(obj),
        children={**seen.children, (DEPLOYMENT.name, "neva"): obj},
    )


def edited(seen: Snapshot, **spec: Any) -> Snapshot:
    """Change the specification at its top, and with it the generation."""
    one = seen.resource
    assert one.spec is not None
    plain = one.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    changed = Spec.model_validate(plain | spec)
    return replace(seen, resource=replace(one, spec=changed, generation=one.generation + 1))


def with_job(seen: Snapshot, **changes: Any) -> Snapshot:
    """Change the one Job."""
    return replace(seen, jobs=(replace(seen.jobs[0], **changes),))


def with_pod(seen: Snapshot, **changes: Any) -> Snapshot:
    """Change all pods."""
    return replace(seen, pods=tuple(replace(pod, **changes) for pod in seen.pods))


def failed(seen: Snapshot, failure: Failure, **changes: Any) -> Snapshot:
    """End the Job with a reported failure."""
    (work,) = seen.jobs
    report = BuildReport(key=work.engine_key, outcome=Outcome.FAILED, stage=Stage.INSPECT, failure=failure)
    message = report.model_dump_json(by_alias=True, exclude_none=True)
    ended = Ended(exit_code=3, reason="Error", message=message, at=NOW)
    over = with_pod(seen, phase="Failed", ended=ended)
    return with_job(over, finished=NOW, failure=("PodFailurePolicy", "exit code 3"), pods_failed=1, **changes)


def peer(seen: Snapshot, **changes: Any) -> Peer:
    """Give another resource that wants the same engine in the same store."""
    plain = Peer(name="other", uid="uid-of-other", engine_key=want(seen.resource).key, builds=True)
    return replace(plain, **changes)


def later(seconds: float) -> datetime:
    """Give a time after `NOW`."""
    return NOW + timedelta(seconds=seconds)


MISSING = Failure(reason=Reason.CHECKPOINT_NOT_FOUND, at="neva.nemo", problem="is no file", remedy="copy it")
