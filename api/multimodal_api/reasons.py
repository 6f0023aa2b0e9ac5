"""The closed list of reasons: conditions, events, metric labels, exit reports and the docs page all use it."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """Why a resource is as it is. A value is part of the API: never rename one."""

    def __new__(cls, value: str, doc: str) -> Self:
        """Keep the explanation beside the value; `docs/reference/reasons.md` is made from it."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.__doc__ = doc
        return member

    # Going well
    ALL_IS_WELL = "AllIsWell", "The wanted engine is served by the wanted number of pods."
    ACCEPTED = "Accepted", "The specification holds together."
    SOURCE_FOUND = "SourceFound", "Every claim that the specification names exists."
    STORAGE_READY = "StorageReady", "The engine store can be mounted."
    ENGINE_PUBLISHED = "EnginePublished", "The engine was built, verified and published in the store."
    ENGINE_FOUND = "EngineFound", "The store already held a whole engine under the wanted key: nothing was built."
    ROLLED_OUT = "RolledOut", "All serving pods are up to date and available."
    SUSPENDED = "Suspended", "spec.suspend is true: pods are stopped, the engine is kept."
    DELETING = "Deleting", "The resource is being deleted: pods and Jobs end first, then the store is released."

    # On the way
    PENDING = "Pending", "Not looked at yet: an earlier step is not finished."
    WAITING_FOR_STORAGE = "WaitingForStorage", "The engine store's claim is not bound yet."
    INSPECTING = "Inspecting", "A CPU Job reads the checkpoint's headers before a GPU is asked for."
    BUILDING_ENGINE = "BuildingEngine", "The build Job is at work."
    WAITING_FOR_BUILD = "WaitingForBuild", "Another resource builds the same engine in the same store."
    WAITING_FOR_GPU = "WaitingForGpu", "The scheduler finds no node with enough free GPUs."
    UNSCHEDULABLE = "Unschedulable", "The scheduler finds no node for the pod, for another reason than GPUs."
    ROLLING_OUT = "RollingOut", "New serving pods are starting; the old ones serve until these answer."

    # Wrong input
    INVALID = "Invalid", "The specification contradicts itself; the message names the field and what to write."
    NOT_IMPLEMENTED = (
        "NotImplemented",
        "This version does not implement the named value yet; the message lists those it does.",
    )
    CLAIM_NOT_FOUND = "ClaimNotFound", "A PersistentVolumeClaim that the specification names does not exist."
    CHECKPOINT_NOT_FOUND = "CheckpointNotFound", "The claim has nothing at the given path."
    SECRET_NOT_FOUND = "SecretNotFound", "The Secret, or the key in it, that the specification names does not exist."
    CHECKPOINT_UNREADABLE = "CheckpointUnreadable", "The archive is truncated, corrupted or not an archive."
    CHECKPOINT_UNSAFE = "CheckpointUnsafe", "The checkpoint holds links, paths outside itself or pickled code."
    CHECKPOINT_CONFIG = (
        "CheckpointConfig",
        "The checkpoint's configuration lacks a key or contradicts the specification.",
    )
    CHECKPOINT_WEIGHTS = "CheckpointWeights", "Weights are missing, left over or of an unexpected shape."
    UNSUPPORTED_MODEL = "UnsupportedModel", "The checkpoint is of a kind that this version cannot convert."
    LIMITS_TOO_SMALL = "LimitsTooSmall", "The model's media tokens and prompt do not fit in the given limits."
    BACKEND_UNAVAILABLE = "BackendUnavailable", "The image does not hold the library of the chosen backend."

    # Wrong world
    OUT_OF_MEMORY = "OutOfMemory", "The kernel ended the container: its memory limit is too small."
    OUT_OF_GPU_MEMORY = "OutOfGpuMemory", "The GPU's memory did not suffice."
    DEVICE_MISSING = "DeviceMissing", "GPUs were asked for but the process sees none."
    DISK_FULL = "DiskFull", "The engine store has no room left."
    IMAGE_PULL_FAILED = "ImagePullFailed", "An image cannot be pulled."
    QUOTA_EXCEEDED = "QuotaExceeded", "A ResourceQuota or an admission policy refused a child object."
    ENGINE_CORRUPT = "EngineCorrupt", "A published engine does not match its manifest."
    ENGINE_NOT_FOUND = "EngineNotFound", "spec.engine.key names an engine that the store does not hold."
    VERIFICATION_FAILED = "VerificationFailed", "The engine gave no sane answer to its first question."
    DEADLINE_EXCEEDED = "DeadlineExceeded", "The step did not finish in its time."
    SERVER_FAILED = (
        "ServerFailed",
        "A serving container ended or does not become ready; the message carries its last words.",
    )
    BUILD_FAILED = "BuildFailed", "The build ended with an unexpected error; the message carries its last words."
    CONFLICT = "Conflict", "A child's name is taken by an object that belongs to someone else."
    REQUEST_REFUSED = "RequestRefused", "A request is malformed or beyond a limit; the message names the field."
    SERVER_BUSY = "ServerBusy", "The server's queue is full: the request was not begun and may be sent again."
    SHUTTING_DOWN = "ShuttingDown", "The server is stopping: the request was not begun and may be sent to another pod."
    INTERNAL = "Internal", "A defect of this software; the log has the details."
