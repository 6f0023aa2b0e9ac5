"""`status` of a `MultimodalDeployment`: a report, recomputed from specification and children at any time."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from multimodal_api.base import OpenModel
from multimodal_api.build import Stage
from multimodal_api.engine import Backend, EngineKey
from multimodal_api.reasons import Reason


class ConditionType(StrEnum):
    """All conditions are positive: True is good."""

    READY = "Ready"
    """The summary: the wanted engine is served by the wanted number of pods."""
    ACCEPTED = "Accepted"
    """The specification holds together."""
    SOURCE_RESOLVED = "SourceResolved"
    """The checkpoints can be mounted."""
    STORAGE_READY = "StorageReady"
    """The engine store can be mounted."""
    ENGINE_BUILT = "EngineBuilt"
    """The wanted engine is in the store."""
    DEPLOYED = "Deployed"
    """Serving pods with the wanted engine are available."""


class ConditionStatus(StrEnum):
    """Kubernetes' three truth values."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Phase(StrEnum):
    """One word for people, derived from the conditions; no program branches on it."""

    PENDING = "Pending"
    BUILDING = "Building"
    DEPLOYING = "Deploying"
    READY = "Ready"
    UPDATING = "Updating"
    SUSPENDED = "Suspended"
    FAILED = "Failed"
    DELETING = "Deleting"


class Condition(OpenModel):
    """A condition in the form of metav1.Condition."""

    type: ConditionType
    """Which condition."""
    status: ConditionStatus
    """Whether it holds."""
    reason: Reason
    """Why, from the closed list."""
    message: Annotated[str, Field(max_length=4096)]
    """Why, for people: field, value and remedy."""
    observed_generation: int
    """Generation of the specification that this is about."""
    last_transition_time: datetime
    """When `status` last changed."""


class EngineStatus(OpenModel):
    """The engine that is served, or being made."""

    key: EngineKey
    """Names its folder in the store."""
    backend: Backend
    """What runs the language model."""
    store: str
    """Claim that holds it."""
    size_bytes: int | None = None
    """Sum of its files, in bytes."""


class BuildStatus(OpenModel):
    """The latest build."""

    job_name: str
    """Its Job."""
    attempt: int = 1
    """Pods started so far."""
    stage: Stage | None = None
    """What it is at."""
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Of the stage."""
    started_at: datetime | None = None
    """Start of the Job."""
    finished_at: datetime | None = None
    """End of the Job."""


class Status(OpenModel):
    """What is."""

    observed_generation: int | None = None
    """Generation of the specification that this status is about."""
    phase: Phase = Phase.PENDING
    """One word for people."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] = ()
    """Details, one per duty."""
    engine: EngineStatus | None = None
    """The wanted engine."""
    serving_engine_key: EngineKey | None = None
    """Key of the engine that answers now; another than the wanted one while that is being built or rolled out."""
    build: BuildStatus | None = None
    """The latest build."""
    replicas: int = 0
    """Serving pods."""
    ready_replicas: int = 0
    """Serving pods that answer."""
    selector: str = ""
    """Label selector of the serving pods, for the scale subresource."""
    url: str | None = None
    """In-cluster address of the HTTP port."""
    model_name: str | None = None
    """Name of the model on the wire."""
