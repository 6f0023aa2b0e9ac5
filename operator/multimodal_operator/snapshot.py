"""What is seen of one resource and all around it: the whole input of `plan`, frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from multimodal_api.labels import GROUP

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from multimodal_api.build import BuildReport, Progress
    from multimodal_api.engine import EngineKey
    from multimodal_api.errors import Failure
    from multimodal_api.resource import Spec
    from multimodal_api.status import Status
    from multimodal_operator.kinds import Json
    from multimodal_operator.settings import Images

APPLIED: Final = f"{GROUP}/applied"
"""Annotation: digest of the object as it was rendered, so that a field that is no longer rendered is noticed."""
HELD_SPEC: Final = f"{GROUP}/serving-spec"
"""Annotation of the Deployment: its spec as rendered. While a new engine is built, the old pods are kept from it."""
STORE_UID: Final = f"{GROUP}/store-uid"
"""Annotation: the claim (not only its name) that held the engine; a claim made anew is empty."""
RUN: Final = f"{GROUP}/run"
"""Annotation of a Job: how often this work was begun anew after a failure, from 1."""


class Purpose(StrEnum):
    """What a Job is for; part of its name and its component label."""

    FIND = "find"
    """Look for an engine that the user named."""
    INSPECT = "inspect"
    """Read a checkpoint's headers on the CPU, before GPUs are asked for."""
    BUILD = "build"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One `MultimodalDeployment` as it is stored."""

    name: str
    namespace: str
    uid: str
    generation: int
    deleting_since: datetime | None
    finalizers: tuple[str, ...]
    spec: Spec | None
    """None when the stored specification is not one of this version; `problem` tells."""
    problem: Failure | None
    status: Status
    """As last written: input for transition times only."""

    @property
    def key(self) -> str:
        """Namespace and name, as the queue knows it."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A PersistentVolumeClaim, the operator's or the user's."""

    name: str
    uid: str
    phase: str
    deleting: bool
    storage_class: str | None
    access_modes: tuple[str, ...]
    size: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a container ended."""

    exit_code: int
    reason: str
    message: str
    """Its termination message."""
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod of a Job or of the Deployment, with its one container."""

    name: str
    uid: str
    owner_uid: str
    engine_key: str
    component: str
    created: datetime
    phase: str
    ip: str
    ready: bool
    deleting: bool
    started: bool
    """The container ran at least once."""
    restarts: int
    unscheduled: str
    """The scheduler's words, empty when it found a node."""
    waiting: tuple[str, str] | None
    """Reason and message of a container that the kubelet does not start."""
    ended: Ended | None
    """The container's end, or its last one before the restart."""
    evicted: str
    """The kubelet's words when it evicted or refused the pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A Job that makes or finds an engine."""

    name: str
    uid: str
    purpose: Purpose
    engine_key: str
    store: str
    """Digest of the claim's name, as in the label."""
    owner_uid: str
    owner_name: str
    store_uid: str
    template: str
    """Digest of what was rendered."""
    run: int
    started: datetime | None
    finished: datetime | None
    succeeded: bool
    failure: tuple[str, str] | None
    """Reason and message of the Job controller."""
    pods_failed: int
    deleting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The serving Deployment."""

    uid: str
    engine_key: str
    store_uid: str
    held_spec: Json | None
    generation: int
    observed_generation: int
    replicas: int
    updated: int
    available: int
    ready: int
    stalled: str
    """Words of an exceeded progress deadline, or empty."""
    refused: str
    """Words of an API server that refuses pods, or empty."""
    deleting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another resource whose engines lie in the same store."""

    name: str
    uid: str
    engine_key: EngineKey
    builds: bool
    """It would build the engine: neither suspended nor being deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The API server, or an owner of the same name, refused one of our writes."""

    kind: str
    name: str
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One resource and its surroundings at one moment."""

    resource: Resource
    images: Images
    claims: Mapping[str, Claim] = field(default_factory=dict)
    """Claims that exist, of those that the specification names or implies."""
    jobs: tuple[Job, ...] = ()
    """Jobs of the store, and Jobs that the resource owns."""
    pods: tuple[Pod, ...] = ()
    """Pods of these Jobs and of the Deployment."""
    deployment: Deployment | None = None
    children: Mapping[tuple[str, str], Json] = field(default_factory=dict)
    """Claim, ServiceAccount, Service and Deployment as stored, by kind and name."""
    peers: tuple[Peer, ...] = ()
    reports: Mapping[str, BuildReport] = field(default_factory=dict)
    """Last report of each Job, by its uid."""
    progress: Progress | None = None
    """Of the running build."""
    pods_refused: str = ""
    """The Job controller's words when it can make no pod for the running build."""
    refusals: tuple[Refusal, ...] = ()
    """Of this pass."""
