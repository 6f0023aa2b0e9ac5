"""What the operator tells a build Job and what the Job reports back.

The operator never mounts the engine store: the Job's exit code and termination message are its only word about it.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Final

from pydantic import Field

from multimodal_api.base import OpenModel
from multimodal_api.engine import EngineKey
from multimodal_api.errors import Failure

CHECKPOINTS_MOUNT: Final = "/checkpoints"
"""The visual checkpoint's claim is mounted read-only at `<mount>/visual`, others beside it."""
STORE_MOUNT: Final = "/engines"
PROGRESS_PORT: Final = 8080
PROGRESS_PATH: Final = "/progress"
TERMINATION_LOG: Final = "/dev/termination-log"
TERMINATION_LIMIT: Final = 4096
"""Bytes that the kubelet keeps of a termination message."""


class Stage(StrEnum):
    """Stages of a build, in order."""

    INSPECT = "inspect"
    CONVERT = "convert"
    BUILD = "build"
    VERIFY = "verify"
    PUBLISH = "publish"


class ExitCode(IntEnum):
    """Exit codes of the builder; a Job's podFailurePolicy reads them."""

    OK = 0
    RETRY = 1
    """Unexpected: another attempt may succeed."""
    REFUSED = 3
    """The input is wrong: no attempt can succeed until it changes. (2 is argparse's.)"""


class Outcome(StrEnum):
    """How a build Job ended."""

    PUBLISHED = "Published"
    FOUND = "Found"
    """A whole engine was in the store already."""
    INSPECTED = "Inspected"
    """`--stop-after inspect` found nothing wrong, and no engine in the store."""
    FAILED = "Failed"


class BuildReport(OpenModel):
    """The termination message of a build container, as JSON of at most `TERMINATION_LIMIT` bytes."""

    key: EngineKey
    outcome: Outcome
    stage: Stage
    """The last stage that was entered."""
    size_bytes: int | None = None
    """Of the engine, when there is one."""
    seconds: dict[Stage, float] = Field(default_factory=dict)
    """Wall time per finished stage."""
    failure: Failure | None = None


class Progress(OpenModel):
    """What `GET :8080/progress` on a building pod answers."""

    stage: Stage
    percent: Annotated[int, Field(ge=0, le=100)]
    """Of this stage."""
    done_bytes: int = 0
    total_bytes: int = 0
