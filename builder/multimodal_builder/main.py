"""`multimodal-builder`: inspect, convert and build."""

from __future__ import annotations

import argparse
import errno
import logging
import shutil
import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter, ValidationError

from multimodal_api.build import (
    PROGRESS_PORT,
    TERMINATION_LIMIT,
    TERMINATION_LOG,
    BuildReport,
    ExitCode,
    Outcome,
    Stage,
)
from multimodal_api.engine import BuildInputs, Dtype, EngineKey, Limits, TokenLimits
from multimodal_api.errors import Failure, ProductError
from multimodal_api.families import FAMILIES, Family, LlmType
from multimodal_api.logs import FIELDS, configure
from multimodal_api.reasons import Reason
from multimodal_builder.canonical import write_canonical
from multimodal_builder.checkpoints.checkpoint import CheckpointLocations, parse_location
from multimodal_builder.checkpoints.hub import Hub
from multimodal_builder.inspection import Inspection, inspect
from multimodal_builder.llava import write_llava
from multimodal_builder.progress import Tracker, serve_progress
from multimodal_builder.stages import BuildRequest, run_build
from multimodal_builder.store import Store
from multimodal_builder.table import as_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from multimodal_builder.plan import Plan

log = logging.getLogger(__name__)

PROGRAM: Final = "multimodal-builder"
LOCATION: Final = "a path, or hf:OWNER/NAME[@REVISION]"

RETRIED: Final = frozenset({
    *(Reason.BUILD_FAILED, Reason.DISK_FULL, Reason.DEADLINE_EXCEEDED, Reason.OUT_OF_MEMORY),
    *(Reason.OUT_OF_GPU_MEMORY, Reason.DEVICE_MISSING, Reason.INTERNAL),
})  # fmt: skip
"""Reasons that lie in the world and may pass; all others lie in the input."""

_MESSAGE_BYTES: Final = 3000
"""Of a failure's texts in the termination message, so that the whole stays under the kubelet's limit."""


class _TerminatedError(BaseException):
    """SIGTERM came: the pod is being deleted. No `except Exception` may swallow it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; give its exit code."""
    arguments = _parser().parse_args(argv)
    configure(PROGRAM)
    try:
        code: ExitCode = arguments.run(arguments)
    except ProductError as error:
        print(error, file=sys.stderr)
        code = ExitCode.REFUSED
    return int(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(required=True)

    looking = commands.add_parser("inspect", help="read headers and configurations, list sizes and problems")
    _add_model(looking)
    _add_limits(looking)
    looking.add_argument("--json", action="store_true", help="print JSON instead of a table")
    looking.set_defaults(run=_inspect)

    converting = commands.add_parser("convert", help="write the canonical model of a checkpoint")
    _add_model(converting)
    converting.add_argument("out", type=Path, help="folder to make; must not exist")
    converting.add_argument("--dtype", type=Dtype, choices=list(Dtype), help="of all weights; default: as they are")
    converting.add_argument("--layout", choices=["llava"], help="also write OUT/llava, one model for transformers")
    converting.set_defaults(run=_convert)

    building = commands.add_parser("build", help="make an engine in a store, as the build Job does")
    building.add_argument("--inputs", type=BuildInputs.model_validate_json, required=True, help="BuildInputs as JSON")
    building.add_argument("--visual-checkpoint", type=parse_location, required=True, help=LOCATION)
    building.add_argument("--llm-checkpoint", type=parse_location)
    building.add_argument("--lora-checkpoint", type=parse_location)
    building.add_argument("--store", type=Path, required=True)
    building.add_argument("--key", type=TypeAdapter(EngineKey).validate_python, required=True)
    building.add_argument("--stop-after", choices=[Stage.INSPECT.value], help="only look at the checkpoint")
    building.add_argument("--expect-engine", action="store_true", help="fail if the store has no such engine")
    building.add_argument("--keep", action="append", metavar="KEY", help="remove all other engines from the store")
    building.add_argument("--progress-port", type=int, default=PROGRESS_PORT)
    building.add_argument("--termination-log", type=Path, default=Path(TERMINATION_LOG))
    building.set_defaults(run=_build)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=parse_location, help=f"archive or folder: {LOCATION}")
    parser.add_argument(
        "--llm", type=parse_location, metavar="CHECKPOINT", help="of the language model; default: the first one"
    )
    parser.add_argument("--lora", type=parse_location, metavar="CHECKPOINT", help="of an adapter to merge into it")
    parser.add_argument("--type", type=Family, choices=list(Family), default=Family.NEVA)
    parser.add_argument("--llm-type", type=LlmType, choices=list(LlmType), default=LlmType.LLAMA)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of a resource's specification, with its defaults."""
    parser.add_argument("--num-gpus", type=int, default=1, help="that share the language model; 0 is the CPU")
    parser.add_argument("--dtype", type=Dtype, choices=list(Dtype), default=Dtype.BFLOAT16, help="of weights in memory")
    for name, field in TokenLimits.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=field.default)
    parser.add_argument("--vision-max-batch-size", type=int, help="default: the family's")


def _limits(arguments: argparse.Namespace) -> Limits:
    tokens = {name: getattr(arguments, name) for name in TokenLimits.model_fields}
    media = arguments.vision_max_batch_size or FAMILIES[arguments.type].vision_max_batch_size
    return Limits(**tokens, vision_max_batch_size=media)


def _look(
    arguments: argparse.Namespace, around: ExitStack, *, limits: Limits | None = None, num_gpus: int = 1
) -> tuple[Inspection, Plan | None]:
    """Inspect the checkpoints that the command line names; what is fetched for that lives as long as `around`."""
    hub = Hub(Path(around.enter_context(TemporaryDirectory(prefix=f"{PROGRAM}-"))))
    locations = CheckpointLocations(visual=arguments.checkpoint, llm=arguments.llm, lora=arguments.lora)
    inspection, plan, opened = inspect(
        locations.fetch(hub),
        family=arguments.type,
        llm_type=arguments.llm_type,
        dtype=arguments.dtype or Dtype.BFLOAT16,
        limits=limits,
        num_gpus=num_gpus,
        hub=hub,
    )
    around.enter_context(opened)
    return inspection, plan


def _inspect(arguments: argparse.Namespace) -> ExitCode:
    try:
        limits = _limits(arguments)
    except ValidationError as error:
        print("\n".join(f"{detail['loc'][0]}: {detail['msg']}" for detail in error.errors()), file=sys.stderr)
        return ExitCode.REFUSED
    with ExitStack() as around:
        inspection, _ = _look(arguments, around, limits=limits, num_gpus=arguments.num_gpus)
    if arguments.json:
        print(inspection.model_dump_json(by_alias=True, exclude_none=True, indent=2))
    else:
        print(as_table(inspection))
    return ExitCode.REFUSED if inspection.problems else ExitCode.OK


def _convert(arguments: argparse.Namespace) -> ExitCode:
    out: Path = arguments.out
    with ExitStack() as around:
        inspection, plan = _look(arguments, around)
        if plan is None:
            print(as_table(inspection), file=sys.stderr)
            return ExitCode.REFUSED
        if out.exists():
            print(f"{out}: exists already; name a folder that does not", file=sys.stderr)
            return ExitCode.REFUSED
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            write_canonical(plan, partial, root=partial, dtype=arguments.dtype, on_bytes=lambda _: None)
            if arguments.layout:
                write_llava(plan, partial / arguments.layout, dtype=arguments.dtype)
            partial.rename(out)
        except ProductError as error:
            shutil.rmtree(partial, ignore_errors=True)
            print(error, file=sys.stderr)
            return ExitCode.REFUSED
    return ExitCode.OK


def _build(arguments: argparse.Namespace) -> ExitCode:
    signal.signal(signal.SIGTERM, _on_sigterm)
    tracker = Tracker()
    request = BuildRequest(
        inputs=arguments.inputs,
        key=arguments.key,
        checkpoints=CheckpointLocations(
            visual=arguments.visual_checkpoint, llm=arguments.llm_checkpoint, lora=arguments.lora_checkpoint
        ),
        stop_after_inspect=arguments.stop_after is not None,
        expect_engine=arguments.expect_engine,
        keep=None if arguments.keep is None else tuple(arguments.keep),
    )
    with ExitStack() as around:
        around.enter_context(serve_progress(tracker, arguments.progress_port))
        try:
            report = run_build(request, Store(arguments.store), tracker)
        except (Exception, _TerminatedError) as error:  # noqa: BLE001 (the container's last words)
            report = BuildReport(
                key=request.key,
                outcome=Outcome.FAILED,
                stage=tracker.stage,
                seconds=tracker.seconds,
                failure=_failure(error, tracker.stage, arguments.store),
            )
    _tell(report, arguments.termination_log)
    if report.failure is None:
        return ExitCode.OK
    return ExitCode.RETRY if report.failure.reason in RETRIED else ExitCode.REFUSED


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what follows is short
    raise _TerminatedError


def _failure(error: BaseException, stage: Stage, store: Path) -> Failure:
    """Put any error into the project's words."""
    if isinstance(error, ProductError):
        return error.failure
    at = f"stage {stage}"
    if isinstance(error, _TerminatedError):
        return Failure(
            reason=Reason.BUILD_FAILED,
            at=at,
            problem="the container was told to end (SIGTERM)",
            remedy="nothing: the next attempt goes on behind the last finished stage",
        )
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Failure(
            reason=Reason.DISK_FULL,
            at=f"engine store {store}",
            problem=f"no room left on the device during {at}",
            remedy="delete engines that are not used, or give spec.engineStore a larger volume",
        )
    if isinstance(error, MemoryError):
        return Failure(
            reason=Reason.OUT_OF_MEMORY,
            at=at,
            problem="no memory left",
            remedy="raise the memory limit in spec.build.resources",
        )
    log.error("unexpected error", exc_info=error)
    return Failure(
        reason=Reason.BUILD_FAILED,
        at=at,
        problem=f"{type(error).__name__}: {error}",
        remedy="see the log of this container; if the next attempt fails too, report it",
    )


def _tell(report: BuildReport, termination_log: Path) -> None:
    """Log the outcome, and leave it where the kubelet looks."""
    failure = report.failure
    level = logging.INFO if failure is None else logging.ERROR
    log.log(level, "build ended", extra={FIELDS: {"report": report.model_dump(mode="json", exclude_none=True)}})
    if failure is not None and len(failure.model_dump_json()) > _MESSAGE_BYTES:
        cut = {"at": failure.at[:200], "problem": f"{failure.problem[:500]}…", "remedy": failure.remedy[:300]}
        report = report.model_copy(update={"failure": failure.model_copy(update=cut)})
    message = report.model_dump_json(by_alias=True, exclude_none=True).encode()
    with suppress(OSError):  # outside a pod there is no such file
        termination_log.write_bytes(message[:TERMINATION_LIMIT])


if __name__ == "__main__":
    sys.exit(main())
