"""Mirror and inquiries → snapshot of one resource."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from multimodal_operator import views
from multimodal_operator.kinds import CLAIM, DEPLOYMENT, RESOURCE, SERVICE, SERVICE_ACCOUNT, Json
from multimodal_operator.snapshot import Claim, Job, Pod, Resource, Snapshot
from multimodal_operator.want import SERVING, Wanted, resolve, store_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from multimodal_api.build import BuildReport, Progress
    from multimodal_operator.inquiries import Inquiries
    from multimodal_operator.mirror import Mirror
    from multimodal_operator.settings import Images


class Observer:
    """Puts snapshots together."""

    def __init__(self, mirror: Mirror, inquiries: Inquiries, images: Images) -> None:
        self._mirror = mirror
        self._inquiries = inquiries
        self._images = images

    def resource(self, namespace: str, name: str) -> Resource | None:
        """See a resource itself; None when it does not exist (any more)."""
        obj = self._mirror.get(RESOURCE, namespace, name)
        return None if obj is None else views.resource(obj)

    async def snapshot(self, namespace: str, name: str) -> Snapshot | None:
        """See one resource and all around it; None when it does not exist (any more)."""
        resource = self.resource(namespace, name)
        if resource is None:
            return None
        want = resolve(resource, resource.spec) if resource.spec else None
        jobs = self._jobs(resource, want)
        pods = self._pods(resource, jobs)
        jobs = _settled(jobs, pods)
        deployment = self._mirror.get(DEPLOYMENT, namespace, name)
        at_work = _at_work(want, jobs) if want else None
        return Snapshot(
            resource=resource,
            images=self._images,
            claims=await self._claims_of(want) if want else {},
            jobs=jobs,
            pods=pods,
            deployment=views.deployment(deployment) if deployment else None,
            children=self._children(resource, want),
            peers=self._mirror.peers(namespace, store_digest(want.store), name) if want else (),
            reports=_reports(jobs, pods),
            progress=await self._progress_of(at_work, pods) if at_work else None,
            pods_refused=await self._refusal_of(namespace, at_work, pods) if at_work else "",
        )

    def _jobs(self, resource: Resource, want: Wanted | None) -> tuple[Job, ...]:
        found = {obj["metadata"]["name"]: obj for obj in self._mirror.owned_jobs(resource.namespace, resource.name)}
        if want is not None:
            shared = self._mirror.jobs(resource.namespace, store_digest(want.store))
            found |= {obj["metadata"]["name"]: obj for obj in shared}
        seen = (views.job(obj) for _name, obj in sorted(found.items()))
        return tuple(job for job in seen if job is not None)

    def _pods(self, resource: Resource, jobs: Iterable[Job]) -> tuple[Pod, ...]:
        owners = [f"instance/{resource.name}", *(job.uid for job in jobs)]
        found = {
            obj["metadata"]["name"]: obj for owner in owners for obj in self._mirror.pods(resource.namespace, owner)
        }
        return tuple(views.pod(obj) for _name, obj in sorted(found.items()))

    def _children(self, resource: Resource, want: Wanted | None) -> Mapping[tuple[str, str], Json]:
        wanted = [(kind, resource.name) for kind in (SERVICE_ACCOUNT, SERVICE, DEPLOYMENT)]
        if want is not None and want.owns_store:
            wanted.append((CLAIM, want.store))
        found = {(kind.name, name): self._mirror.get(kind, resource.namespace, name) for kind, name in wanted}
        return {key: obj for key, obj in found.items() if obj is not None}

    async def _claims_of(self, want: Wanted) -> dict[str, Claim]:
        found: dict[str, Json | None] = {}
        for name in sorted({want.store, *(name for _at, name in want.sources)}):
            found[name] = self._mirror.get(CLAIM, want.namespace, name)
            if found[name] is None and not (want.owns_store and name == want.store):
                found[name] = await self._inquiries.claim(want.namespace, name)
        return {name: views.claim(obj) for name, obj in found.items() if obj is not None}

    async def _progress_of(self, job: Job, pods: Iterable[Pod]) -> Progress | None:
        for pod in pods:
            if pod.owner_uid == job.uid and pod.ip and pod.phase == "Running" and not pod.deleting:
                return await self._inquiries.progress(pod)
        return None

    async def _refusal_of(self, namespace: str, job: Job, pods: Iterable[Pod]) -> str:
        if any(pod.owner_uid == job.uid for pod in pods):
            return ""
        return await self._inquiries.refusal_of_pods(namespace, job)


def _at_work(want: Wanted, jobs: Iterable[Job]) -> Job | None:
    names = {want.job_name(purpose) for purpose in want.purposes}
    return next((job for job in jobs if job.name in names and job.finished is None), None)


def _settled(jobs: Iterable[Job], pods: Iterable[Pod]) -> tuple[Job, ...]:
    """Take a Job for succeeded when a pod of it was: Kubernetes says it of the Job two seconds later."""
    ends = {pod.owner_uid: pod.ended.at for pod in pods if pod.ended is not None and pod.ended.exit_code == 0}
    return tuple(
        replace(job, succeeded=True, finished=job.finished or ends[job.uid])
        if job.uid in ends and job.failure is None
        else job
        for job in jobs
    )


def _reports(jobs: Iterable[Job], pods: Iterable[Pod]) -> dict[str, BuildReport]:
    """Give each Job's last word: that of the newest pod that left one."""
    uids = {job.uid for job in jobs}
    reports: dict[str, BuildReport] = {}
    for pod in sorted(pods, key=lambda pod: pod.created):
        if pod.component == SERVING or pod.owner_uid not in uids or pod.ended is None:
            continue
        report = views.build_report(pod.ended.message)
        if report is not None:
            reports[pod.owner_uid] = report
    return reports
