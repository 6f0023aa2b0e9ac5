"""What no watch shows, asked for sparingly: users' claims, a build's progress, and why a Job gets no pod."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

import aiohttp
from pydantic import ValidationError

from multimodal_api.build import PROGRESS_PATH, PROGRESS_PORT, Progress
from multimodal_operator import views
from multimodal_operator.kinds import CLAIM, EVENT, JOB, Json
from multimodal_operator.plan import POLL_FASTEST
from multimodal_operator.policies import CLAIM_POLL_SECONDS, PODLESS_POLL_SECONDS

if TYPE_CHECKING:
    from multimodal_operator.kube import Kube
    from multimodal_operator.snapshot import Job, Pod

CLAIM_TRUST_SECONDS: Final = 60.0
"""How long a claim of the user's that was bound is taken to be so."""
PROGRESS_SECONDS: Final = 1.0
"""Deadline of the question to a building pod."""
A_LITTLE_LESS: Final = 0.9
"""An answer is kept a little less than until the next look, which would else meet the answer that it wants to renew."""
REMEMBERED: Final = 1000
"""Answers kept of one kind; more are of long ago."""

T = TypeVar("T")
Clock = Callable[[], float]


class ProgressReader(Protocol):
    """Asks a building pod how far it is."""

    async def read(self, ip: str) -> Progress | None:
        """Give its answer, or None: not to be reached is no error."""


class _Answers(Generic[T]):
    """Answers and until when each is good."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[str, tuple[float, T]] = {}

    def good(self, key: str) -> bool:
        """Tell whether there is an answer that need not be renewed."""
        return key in self._kept and self._clock() < self._kept[key][0]

    def get(self, key: str, default: T) -> T:
        """Give the last answer, however old."""
        return self._kept[key][1] if key in self._kept else default

    def keep(self, key: str, answer: T, seconds: float) -> T:
        """Keep an answer for a time, and give it back."""
        if len(self._kept) > REMEMBERED:
            self._kept.clear()
        self._kept[key] = (self._clock() + seconds * A_LITTLE_LESS, answer)
        return answer


class Inquiries:
    """Asks, and remembers what it was told."""

    def __init__(self, kube: Kube, progress: ProgressReader, clock: Clock) -> None:
        self._kube = kube
        self._progress = progress
        self._claims: _Answers[Json | None] = _Answers(clock)
        self._progresses: _Answers[Progress | None] = _Answers(clock)
        self._refusals: _Answers[str] = _Answers(clock)

    async def claim(self, namespace: str, name: str) -> Json | None:
        """Give a claim that is not the operator's; None when there is none."""
        key = f"{namespace}/{name}"
        if self._claims.good(key):
            return self._claims.get(key, None)
        found = await self._kube.get(CLAIM, namespace, name)
        bound = found is not None and views.claim(found).phase == "Bound"
        return self._claims.keep(key, found, CLAIM_TRUST_SECONDS if bound else CLAIM_POLL_SECONDS)

    async def progress(self, pod: Pod) -> Progress | None:
        """Give a building pod's last answer; None when it never gave one."""
        before = self._progresses.get(pod.uid, None)
        if self._progresses.good(pod.uid):
            return before
        return self._progresses.keep(pod.uid, await self._progress.read(pod.ip) or before, POLL_FASTEST)

    async def refusal_of_pods(self, namespace: str, job: Job) -> str:
        """Give the Job controller's words on why it can make no pod; empty when it said nothing of the kind.

        It says so in events only. The first look is a poll later: a pod usually follows its Job at once.
        """
        if self._refusals.get(job.uid, "never asked") == "never asked":
            return self._refusals.keep(job.uid, "", PODLESS_POLL_SECONDS)
        if self._refusals.good(job.uid):
            return self._refusals.get(job.uid, "")
        fields = f"regarding.kind={JOB.name},regarding.name={job.name},reason=FailedCreate"
        events, _version = await self._kube.list(EVENT, namespace, fields=fields)
        newest = sorted(events, key=lambda event: int(event["metadata"]["resourceVersion"]))[-1:]
        return self._refusals.keep(job.uid, "".join(event.get("note", "") for event in newest), PODLESS_POLL_SECONDS)


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
