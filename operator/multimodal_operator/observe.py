"""Mirror → snapshot of one resource.

What no watch shows is asked for sparingly: users' claims, and a build's progress.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

import aiohttp
from pydantic import ValidationError

from multimodal_api.build import PROGRESS_PATH, PROGRESS_PORT, BuildReport, Progress
from multimodal_operator import views
from multimodal_operator.kinds import CLAIM, DEPLOYMENT, RESOURCE, SERVICE, SERVICE_ACCOUNT, Json
from multimodal_operator.plan import POLL_FASTEST
from multimodal_operator.policies import CLAIM_POLL_SECONDS
from multimodal_operator.snapshot import Claim, Job, Pod, Resource, Snapshot
from multimodal_operator.want import SERVING, Wanted, resolve, store_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from multimodal_operator.kube import Kube
    from multimodal_operator.mirror import Mirror
    from multimodal_operator.settings import Images

CLAIM_TRUST_SECONDS: Final = 60.0
"""How long a claim of the user's that was bound is taken to be so."""
PROGRESS_SECONDS: Final = 1.0
"""Deadline of the question to a building pod."""


REMEMBERED: Final = 1000
"""Building pods; more are pods of long ago."""


class ProgressReader(Protocol):
    """Asks a building pod how far it is."""

    async def read(self, ip: str) -> Progress | None:
        """Give its answer, or None: not to be reached is no error."""


class Observer:
    """Puts snapshots together."""

    def __init__(
        self,
        mirror: Mirror,
        kube: Kube,
        images: Images,
        progress: ProgressReader,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mirror = mirror
        self._kube = kube
        self._images = images
        self._progress = progress
        self._clock = clock
        self._claims: dict[tuple[str, str], tuple[float, Json | None]] = {}
        self._polled: dict[str, tuple[float, Progress | None]] = {}

    async def snapshot(self, namespace: str, name: str) -> Snapshot | None:
        """See one resource; None when it does not exist (any more)."""
        obj = self._mirror.get(RESOURCE, namespace, name)
        if obj is None:
            return None
        resource = views.resource(obj)
        want = resolve(resource, resource.spec) if resource.spec else None
        jobs = self._jobs(resource, want)
        pods = self._pods(resource, jobs)
        deployment = self._mirror.get(DEPLOYMENT, namespace, name)
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
            progress=await self._progress_of(want, jobs, pods) if want else None,
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
        names = {want.store, *(name for _at, name in want.sources)}
        if want.owns_store:
            names.discard(want.store)  # it is watched; one that is not there yet need not be asked for
        found = {name: await self._claim(want.namespace, name) for name in sorted(names)}
        if want.owns_store:
            found[want.store] = self._mirror.get(CLAIM, want.namespace, want.store)
        return {name: views.claim(obj) for name, obj in found.items() if obj is not None}

    async def _claim(self, namespace: str, name: str) -> Json | None:
        if (watched := self._mirror.get(CLAIM, namespace, name)) is not None:
            return watched
        key, now = (namespace, name), self._clock()
        until, known = self._claims.get(key, (0.0, None))
        if now < until:
            return known
        obj = await self._kube.get(CLAIM, namespace, name)
        bound = obj is not None and views.claim(obj).phase == "Bound"
        # A little less than the poll, which would else meet the answer it wants to renew.
        self._claims[key] = (now + (CLAIM_TRUST_SECONDS if bound else CLAIM_POLL_SECONDS * 0.9), obj)
        return obj

    async def _progress_of(self, want: Wanted, jobs: Iterable[Job], pods: Iterable[Pod]) -> Progress | None:
        names = {want.job_name(purpose) for purpose in want.purposes}
        running = {job.uid for job in jobs if job.name in names and job.finished is None}
        for pod in pods:
            if pod.owner_uid in running and pod.started and pod.ip and pod.phase == "Running" and not pod.deleting:
                return await self._ask(pod)
        return None

    async def _ask(self, pod: Pod) -> Progress | None:
        now = self._clock()
        asked, answer = self._polled.get(pod.uid, (float("-inf"), None))
        if now - asked < POLL_FASTEST * 0.9:
            return answer
        answer = await self._progress.read(pod.ip) or answer
        if len(self._polled) > REMEMBERED:
            self._polled.clear()
        self._polled[pod.uid] = (now, answer)
        return answer


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


class HttpProgressReader:
    """Asks over the pod network."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROGRESS_SECONDS))

    async def read(self, ip: str) -> Progress | None:
        """Give the pod's answer, or None."""
        host = f"[{ip}]" if ":" in ip else ip
        try:
            async with self._session.get(f"http://{host}:{PROGRESS_PORT}{PROGRESS_PATH}") as response:
                return Progress.model_validate_json(await response.read())
        except (aiohttp.ClientError, OSError, ValidationError):
            return None

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()
