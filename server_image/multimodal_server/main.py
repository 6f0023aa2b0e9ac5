"""`multimodal-server`: serve one engine.

The order of the start is the order of what takes longest: the worker first (it imports torch and loads the engine),
then Triton and its model beside it, which becomes ready on the wire only when a real question has been answered.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import queue
import signal
import threading
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from multimodal_api.build import TERMINATION_LIMIT, TERMINATION_LOG, ExitCode
from multimodal_api.errors import Failure, ProductError
from multimodal_api.logs import FIELDS, configure
from multimodal_api.overrides import Overrides
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Ready
from multimodal_server import memory
from multimodal_server.keeper import Keeper, Published, Unpublished
from multimodal_server.worker_client import WorkerClient

STARTED: Final = time.monotonic()
LOG: Final = logging.getLogger(__name__)
PROGRAM: Final = "multimodal-server"
DISTRIBUTION: Final = "multimodal-operator"
LOAD_SECONDS: Final = 4 * 3600.0
"""Longest load of an engine; the pod's startup probe is the bound that a user sets."""
LAST_WORDS_SECONDS: Final = 1.0
"""After the worker's death, for the errors of its requests to reach their clients."""
WATCH_SECONDS: Final = 1.0
"""Between two looks at Triton's process."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The command line."""

    engine: Path
    model_name: str
    model_version: int
    http_address: str
    http_port: int
    grpc_port: int
    metrics_port: int
    openai_port: int
    drain_seconds: float
    media_domain: list[str]
    overrides: Overrides
    grace_seconds: float
    termination_log: Path


class _Stop:
    """The signal to end."""


_Event = Ready | Failure | _Stop | Published | Unpublished
_Wanted = TypeVar("_Wanted", Ready, Published)


class _Clock:
    """Seconds from the start of the process to each step of it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def note(self, step: str) -> None:
        """A step is done."""
        self.seconds[step] = round(time.monotonic() - STARTED, 3)


def main() -> NoReturn:
    """Serve until a signal (0) or a failure (1)."""
    memory.share_arenas()
    configure(PROGRAM)
    settings = _settings()
    events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: events.put(_Stop()))
    try:
        failure = _serve(settings, events)
    except ProductError as error:
        failure = error.failure
    except Exception as error:
        LOG.exception("the start failed")
        failure = Failure(
            reason=Reason.INTERNAL,
            at="server",
            problem=f"{type(error).__name__}: {error}",
            remedy="report it with the container's log",
        )
    if failure is not None:
        LOG.error("the server ends: %s", failure, extra={FIELDS: {"reason": failure.reason}})
        _leave_word(failure, settings.termination_log)
    # Threads may be waiting for what will not come. Triton, if it runs, is ended by the kernel with this process.
    logging.shutdown()
    os._exit(ExitCode.OK if failure is None else ExitCode.RETRY)


def _serve(settings: Settings, events: queue.SimpleQueue[_Event]) -> Failure | None:
    """Start everything, wait for the end, and stop everything; give the failure, if it was one."""
    worker = WorkerClient.start(settings.engine, events.put)
    # These take a second, while the worker imports torch.
    from multimodal_server.answers import Responder  # noqa: PLC0415
    from multimodal_server.engine import open_engine  # noqa: PLC0415
    from multimodal_server.fetching import fetching  # noqa: PLC0415
    from multimodal_server.metrics import Metrics, MetricsServer  # noqa: PLC0415
    from multimodal_server.openai import OpenAiPort  # noqa: PLC0415
    from multimodal_server.triton import Addresses, Triton, check_port, free_port  # noqa: PLC0415

    clock = _Clock()
    clock.note("imports")
    engine = open_engine(settings.engine, settings.overrides)
    for name in ("http_port", "grpc_port", "metrics_port", "openai_port"):
        check_port(settings.http_address, getattr(settings, name), name=name)
    metrics = Metrics()
    addresses = Addresses(settings.http_address, settings.http_port, settings.grpc_port, free_port())
    page = MetricsServer(
        metrics, address=settings.http_address, port=settings.metrics_port, triton_port=addresses.metrics_port
    )
    triton = Triton(addresses, stop_seconds=settings.grace_seconds)
    responder = Responder(engine, worker, metrics)
    openai = OpenAiPort(
        responder,
        model=settings.model_name,
        version=version(DISTRIBUTION),
        address=settings.http_address,
        port=settings.openai_port,
        fetcher=fetching(settings.media_domain),
    )
    publish = partial(
        triton.publish,
        settings.model_name,
        settings.model_version,
        responder.answer,
        responder.answer_in_pieces,
        inputs=engine.inputs,
        threads=responder.most + 1,  # one to refuse what is too much
    )
    keeper = Keeper(triton, publish, events.put, metrics.triton_restarts.inc)
    keeper.start()
    clock.note("triton")
    end: _Event = _wait_for(Ready, events, keeper)
    if isinstance(end, Ready):
        clock.note("worker")
        metrics.watch_worker(worker.stats)
        responder.warm_up()
        clock.note("warm")
        # Before Triton says that the model is ready: a pod that is ready answers at every port.
        openai.start()
        triton.open()
        loaded, end = end, _wait_for(Published, events, keeper)
    if isinstance(end, Published):
        clock.note("ready")
        LOG.info(
            "ready",
            extra={
                FIELDS: {
                    "model": settings.model_name,
                    "engine": engine.manifest.key,
                    "device": loaded.device,
                    "seconds": clock.seconds,
                    "worker_seconds": loaded.seconds,
                }
            },
        )
        end = _wait_for_end(events, keeper)
        if isinstance(end, _Stop):
            LOG.info("leaving: requests are taken until nobody sends them here any more")
            openai.leave()
            end = _wait_for_end(events, keeper, settings.drain_seconds)
    if isinstance(end, Failure):
        time.sleep(LAST_WORDS_SECONDS)
        triton.discard()
        return end
    LOG.info("stopping: no new requests, finishing those that run")
    stopping = threading.Thread(target=openai.stop, args=(settings.grace_seconds,), name="stop")
    stopping.start()
    triton.stop()
    stopping.join()
    worker.stop()
    page.close()
    LOG.info("stopped")
    return None


def _wait_for(kind: type[_Wanted], events: queue.SimpleQueue[_Event], keeper: Keeper) -> _Wanted | Failure | _Stop:
    """Wait for a step of the start, or an end that comes before it."""
    ends = time.monotonic() + LOAD_SECONDS
    while (event := _next(events, keeper, ends)) is not None:
        if isinstance(event, kind | Failure | _Stop):
            return event
    return Failure(
        reason=Reason.DEADLINE_EXCEEDED,
        at="start",
        problem=f"the engine was not loaded within {LOAD_SECONDS:.0f} seconds",
        remedy="see the worker's log lines; a slow volume is the usual cause",
    )


def _wait_for_end(events: queue.SimpleQueue[_Event], keeper: Keeper, seconds: float = math.inf) -> Failure | _Stop:
    """Wait for a signal, the worker's death or Triton's last; after so many seconds it is time to stop too."""
    ends = time.monotonic() + seconds
    while (event := _next(events, keeper, ends)) is not None:
        if isinstance(event, Failure | _Stop):
            return event
    return _Stop()


def _next(events: queue.SimpleQueue[_Event], keeper: Keeper, ends: float) -> _Event | None:
    """Wait for an event until a moment, and mend Triton meanwhile."""
    while (left := ends - time.monotonic()) > 0:
        lost: Failure | None
        try:
            event = events.get(timeout=min(left, WATCH_SECONDS))
        except queue.Empty:
            lost = keeper.check()
        else:
            if not isinstance(event, Unpublished):
                return event
            lost = event.failure
        if lost is not None and (lasting := keeper.mend(lost)) is not None:
            return lasting
    return None


def _leave_word(failure: Failure, path: Path) -> None:
    """Write the termination message where the kubelet has made a file for it."""
    if not path.exists():
        return
    message = failure.model_dump_json(by_alias=True)
    if len(message.encode()) > TERMINATION_LIMIT:
        cut = failure.model_copy(update={"problem": failure.problem[: TERMINATION_LIMIT // 8]})
        message = cut.model_dump_json(by_alias=True)
    try:
        path.write_text(message)
    except OSError:
        LOG.exception("the termination message cannot be written")


def _settings() -> Settings:
    parser = argparse.ArgumentParser(PROGRAM, description="Serve one engine with Triton and OpenAI's API.")
    parser.add_argument("--engine", type=Path, required=True, help="folder with manifest.json")
    parser.add_argument("--model-name", required=True, help="name of the model on the wire")
    parser.add_argument("--model-version", type=int, default=1, help="version of the model on the wire")
    parser.add_argument("--http-address", default="0.0.0.0", help="address of all ports")  # noqa: S104 -- in a pod
    parser.add_argument("--http-port", type=int, default=8000, help="KServe v2 over HTTP")
    parser.add_argument("--grpc-port", type=int, default=8001, help="KServe v2 over gRPC")
    parser.add_argument("--metrics-port", type=int, default=8002, help="Prometheus metrics")
    parser.add_argument("--openai-port", type=int, default=9000, help="OpenAI's chat completions over HTTP")
    parser.add_argument(
        "--overrides",
        type=Overrides.model_validate_json,
        default=Overrides(),
        help="what this deployment changes of the model's recipe, as JSON (spec.prompt and spec.preprocessing)",
    )
    parser.add_argument(
        "--media-domain", action="append", default=[], help="host to fetch media from (spec.openai.mediaDomains)"
    )
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=0.0,
        help="how long new requests are taken after SIGTERM: the time a cluster needs to send them elsewhere",
    )
    parser.add_argument(
        "--grace-seconds", type=float, default=25.0, help="how long running requests may go on after that"
    )
    parser.add_argument(
        "--termination-log", type=Path, default=Path(TERMINATION_LOG), help="where the reason of a failure is written"
    )
    return Settings(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
