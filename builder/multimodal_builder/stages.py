"""The stages of a build, and how an attempt goes on from where another one ended."""

from __future__ import annotations

import logging
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, TypeVar

from multimodal_api.base import Model
from multimodal_api.build import BuildReport, Outcome, Stage
from multimodal_api.engine import ENGINE_FORMAT, MANIFEST_NAME, MODEL_DIR, BuildInputs, EngineFile, EngineKey, Manifest
from multimodal_api.errors import ProductError
from multimodal_api.logs import FIELDS
from multimodal_api.reasons import Reason
from multimodal_builder.backends.registry import BACKENDS
from multimodal_builder.canonical import write_canonical
from multimodal_builder.checkpoints.checkpoint import HubReference
from multimodal_builder.checkpoints.hub import Hub
from multimodal_builder.files import FileLog, sync_tree
from multimodal_builder.inspection import inspect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from multimodal_builder.checkpoints.checkpoint import CheckpointLocations, Location
    from multimodal_builder.plan import Plan
    from multimodal_builder.progress import Tracker
    from multimodal_builder.store import Store

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

DISTRIBUTION: Final = "multimodal-operator"
"""Whose version the manifest names."""

ROOM: Final = 64 * 2**20
"""Bytes that must be left in the store beside the engine: the disk is never filled to the last one."""


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What a build container is told."""

    inputs: BuildInputs
    key: EngineKey
    checkpoints: CheckpointLocations
    stop_after_inspect: bool
    expect_engine: bool
    keep: tuple[EngineKey, ...] | None
    """Engines that stay; None removes none."""


class FileIdentity(Model):
    """What tells one state of a checkpoint from another without reading it; sums and latest over a folder."""

    path: str
    size: int
    modified_ns: int


class Identity(Model):
    """What an unfinished build was made from; work of another one is not gone on with."""

    inputs: BuildInputs
    builder_version: str
    checkpoints: tuple[FileIdentity, ...]


class ConvertResult(Model):
    """Marker of the convert stage."""

    files: tuple[EngineFile, ...]
    checkpoint_sha256: str


class BuildResult(Model):
    """Marker of the build stage."""

    files: tuple[EngineFile, ...]
    """What the backend added."""


class VerifyResult(Model):
    """Marker of the verify stage."""

    answer_length: int
    """Characters; the answer itself may be anything."""


class Attempt:
    """One run of the stages. Each stage skips itself when an earlier attempt finished it."""

    def __init__(self, request: BuildRequest, store: Store, tracker: Tracker, opened: ExitStack) -> None:
        self.request = request
        self.store = store
        self.tracker = tracker
        self.opened = opened
        """Closes the checkpoints."""
        self.work = store.workspace(request.key, _identity(request))
        self.plan: Plan | None = None
        """Of this attempt's inspection; none is needed once the conversion is finished."""

    def inspect(self) -> None:
        """Read headers and decide the conversion."""
        if self.work.finished(Stage.CONVERT, ConvertResult) is None:
            self.plan = make_plan(self.request, self.store, self.opened)

    def convert(self) -> None:
        """Write the canonical model."""
        if self.plan is None:
            return
        self.tracker.expect(self.plan.weight_bytes)
        self._require_room(self.plan.weight_bytes)
        self.work.clear_engine()
        written = write_canonical(
            self.plan,
            self.work.engine / MODEL_DIR,
            root=self.work.engine,
            dtype=None,
            on_bytes=self.tracker.advance,
        )
        result = ConvertResult(files=written.files, checkpoint_sha256=written.checkpoint_sha256)
        self.work.finish(Stage.CONVERT, result)

    def build(self) -> None:
        """Let the backend add what it loads beside the canonical model."""
        if self.work.finished(Stage.BUILD, BuildResult) is None:
            files = BACKENDS[self.request.inputs.backend].build(self.work.engine, self.request.inputs)
            self.work.finish(Stage.BUILD, BuildResult(files=files))

    def verify(self) -> None:
        """Ask the engine a question."""
        if self.work.finished(Stage.VERIFY, VerifyResult) is None:
            answer = BACKENDS[self.request.inputs.backend].verify(self.work.engine, self.request.inputs)
            self.work.finish(Stage.VERIFY, VerifyResult(answer_length=len(answer)))

    def publish(self) -> None:
        """Write the manifest and make the engine visible."""
        converted = _required(self.work.finished(Stage.CONVERT, ConvertResult))
        built = _required(self.work.finished(Stage.BUILD, BuildResult))
        manifest = Manifest(
            engine_format=ENGINE_FORMAT,
            key=self.request.key,
            inputs=self.request.inputs,
            checkpoint_sha256=converted.checkpoint_sha256,
            builder_version=version(DISTRIBUTION),
            built_at=datetime.now(UTC),
            files=(*converted.files, *built.files),
        )
        path = self.work.engine / MANIFEST_NAME
        path.unlink(missing_ok=True)  # of an attempt that ended here
        FileLog(self.work.engine).write(path, manifest.model_dump(mode="json", by_alias=True))
        sync_tree(self.work.engine)
        self.store.publish(self.request.key, self.work)

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.store.root).free
        if free < needed + ROOM:
            raise ProductError(
                Reason.DISK_FULL,
                at=f"engine store {self.store.root}",
                problem=f"{free} bytes are free, {needed + ROOM} are needed",
                remedy="delete engines that are not used, or give spec.engineStore a larger volume",
            )


STEPS: Final[Mapping[Stage, Callable[[Attempt], None]]] = {
    Stage.INSPECT: Attempt.inspect,
    Stage.CONVERT: Attempt.convert,
    Stage.BUILD: Attempt.build,
    Stage.VERIFY: Attempt.verify,
    Stage.PUBLISH: Attempt.publish,
}
"""In order."""


def run_build(request: BuildRequest, store: Store, tracker: Tracker) -> BuildReport:
    """Do what a build container is for.

    Raises:
        ProductError: an expected failure.
    """
    if request.stop_after_inspect or request.expect_engine:
        return _look(request, store, tracker)
    with store.lock(request.key), ExitStack() as opened:
        found = _find(request, store)
        if found is None:
            attempt = Attempt(request, store, tracker, opened)
            for stage, step in STEPS.items():
                with tracker.during(stage):
                    step(attempt)
        # Also of an attempt that ended between publishing and this.
        store.discard_work(request.key)
        if request.keep is not None:
            removed = store.prune({request.key, *request.keep})
            log.info("pruned", extra={FIELDS: {"removed": removed}})
    return _report(request, tracker, Outcome.PUBLISHED if found is None else Outcome.FOUND, store.find(request.key))


def _look(request: BuildRequest, store: Store, tracker: Tracker) -> BuildReport:
    """Find the engine, or check the checkpoints that it would be built from; what was fetched stays for the build."""
    if (found := _find(request, store)) is not None:
        return _report(request, tracker, Outcome.FOUND, found)
    with ExitStack() as opened, tracker.during(Stage.INSPECT):
        make_plan(request, store, opened)
    return _report(request, tracker, Outcome.INSPECTED)


def make_plan(request: BuildRequest, store: Store, opened: ExitStack) -> Plan:
    """Fetch what does not lie on a volume, and check everything that headers and configurations can tell.

    Args:
        request: What is wanted.
        store: Takes what is fetched.
        opened: Keeps the checkpoints open.

    Raises:
        ProductError: the first problem; it counts the others, which are in the log.
    """
    BACKENDS[request.inputs.backend].check(request.inputs)
    inputs = request.inputs
    hub = Hub(store.downloads(request.key))
    inspection, plan, checkpoints = inspect(
        request.checkpoints.fetch(hub),
        family=inputs.family,
        llm_type=inputs.llm_type,
        dtype=inputs.dtype,
        limits=inputs.limits,
        num_gpus=inputs.num_gpus,
        hub=hub,
    )
    opened.enter_context(checkpoints)
    log.info("inspected", extra={FIELDS: {"inspection": inspection.model_dump(mode="json", exclude_none=True)}})
    if plan is None:
        first, *others = inspection.problems
        more = f" (and {len(others)} more problems, see the log of this container)" if others else ""
        raise ProductError(first.reason, at=first.at, problem=first.problem + more, remedy=first.remedy)
    return plan


def _find(request: BuildRequest, store: Store) -> Manifest | None:
    try:
        found = store.find(request.key)
    except ProductError as error:
        if request.expect_engine:
            raise
        log.warning("building again", extra={FIELDS: {"because": str(error)}})
        return None
    if found is None and request.expect_engine:
        raise ProductError(
            Reason.ENGINE_NOT_FOUND,
            at="spec.engine.key",
            problem=f"the store holds no engine {request.key}",
            remedy="correct the key, or remove it so that the engine is built",
        )
    return found


def _identity(request: BuildRequest) -> Identity:
    return Identity(
        inputs=request.inputs,
        builder_version=version(DISTRIBUTION),
        checkpoints=tuple(map(_file_identity, request.checkpoints.given())),
    )


def _file_identity(path: Location) -> FileIdentity:
    if isinstance(path, HubReference):  # what was fetched for a build stays what it is until the build has ended
        return FileIdentity(path=str(path), size=0, modified_ns=0)
    try:
        found = [file.lstat() for file in (path, *path.rglob("*"))]
    except OSError:  # the inspection finds the words for it
        found = []
    return FileIdentity(
        path=str(path),
        size=sum(status.st_size for status in found),
        modified_ns=max((status.st_mtime_ns for status in found), default=0),
    )


def _required(result: _Result | None) -> _Result:
    if result is None:
        raise RuntimeError("a marker vanished between two stages")
    return result


def _report(request: BuildRequest, tracker: Tracker, outcome: Outcome, manifest: Manifest | None = None) -> BuildReport:
    return BuildReport(
        key=request.key,
        outcome=outcome,
        stage=tracker.stage,
        size_bytes=manifest.size_bytes if manifest else None,
        seconds=tracker.seconds,
    )
