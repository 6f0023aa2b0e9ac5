"""`python -m multimodal_worker.main`, started by the front: load an engine, then answer what comes over the socket."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import ValidationError

from multimodal_api.engine import MANIFEST_NAME, MODEL_DIR, Manifest
from multimodal_api.errors import Failure, ProductError
from multimodal_api.logs import FIELDS, configure
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import AskStats, Cancel, Failed, Generate, ProtocolError, Ready, Shutdown
from multimodal_worker.backends import LOADERS
from multimodal_worker.connection import Connection
from multimodal_worker.device import DeviceChoice, DeviceThread, choose, cpu_threads
from multimodal_worker.encoder import BatchedEncoder, MediaCache
from multimodal_worker.scheduler import DeviceLostError, Scheduler

LOG: Final = logging.getLogger(__name__)
PROGRAM: Final = "multimodal-worker"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the front says on the command line."""

    engine: Path
    socket_fd: int
    device: DeviceChoice


def main() -> int:
    """Run until the front goes away (0), or the engine cannot be loaded or the device is lost (1)."""
    configure(PROGRAM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to all: the front decides
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__)
    parser.add_argument("--engine", type=Path, required=True, help="folder with manifest.json")
    parser.add_argument("--socket-fd", type=int, required=True, help="descriptor of the connected socket")
    arguments = parser.parse_args()
    settings = Settings(
        engine=arguments.engine,
        socket_fd=arguments.socket_fd,
        device=DeviceChoice(os.environ.get("MULTIMODAL_DEVICE", DeviceChoice.AUTO)),
    )
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    connection = await Connection.open(socket.socket(fileno=settings.socket_fd))
    try:
        await _serve(settings, connection)
    except Exception as error:
        LOG.exception("the worker ends")
        await connection.send(Failed(failure=_explain(error)))
        return 1
    finally:
        await connection.close()
    return 0


async def _serve(settings: Settings, connection: Connection) -> None:
    torch.set_num_threads(cpu_threads())
    seconds = {"import": _process_age()}
    inputs = _read_manifest(settings.engine).inputs
    device = choose(settings.device, num_gpus=inputs.num_gpus)
    thread = DeviceThread()
    begun = time.monotonic()
    engine = await thread.run(
        LOADERS[inputs.backend], settings.engine / MODEL_DIR, inputs, device=device, thread=thread
    )
    seconds["load"] = time.monotonic() - begun
    # A CPU gains nothing by more at once, and what it computes would depend on their number.
    max_batch = 1 if device.type == "cpu" else inputs.limits.vision_max_batch_size
    encoder = BatchedEncoder(engine.encoder, thread, max_batch=max_batch, cache=MediaCache())
    scheduler = Scheduler(engine, encoder, thread, max_running=inputs.limits.max_batch_size, send=connection.send)
    LOG.info("engine loaded", extra={FIELDS: {"device": str(device), "seconds": seconds}})
    await connection.send(Ready(device=str(device), seconds=seconds))
    try:
        await _until_the_end(connection, scheduler)
    finally:
        await scheduler.close()
        await engine.backend.close()
        thread.close()


async def _until_the_end(connection: Connection, scheduler: Scheduler) -> None:
    """Answer until the front closes the socket or says so.

    Raises:
        DeviceLostError: at once, whatever still runs.
    """
    reading = asyncio.create_task(_read(connection, scheduler))
    ends: set[asyncio.Future[Any]] = {reading, scheduler.lost}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if scheduler.lost.done():
        reading.cancel()
        raise scheduler.lost.result()
    await reading


async def _read(connection: Connection, scheduler: Scheduler) -> None:
    while (frame := await connection.receive()) is not None:
        message, buffers = frame
        match message:
            case Generate():
                await scheduler.submit(message, buffers)
            case Cancel():
                scheduler.cancel(message.request_id)
            case AskStats():
                await connection.send(scheduler.stats())
            case Shutdown():
                return
            case _:
                raise ProtocolError(f"the front sent {message.type!r}")


def _process_age() -> float:
    """Seconds since the kernel started this process: most of a start is the import of torch, before all of ours."""
    started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


def _read_manifest(engine: Path) -> Manifest:
    """Read what the engine was built for; the front has verified it before."""
    path = engine / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ProductError(
            Reason.ENGINE_CORRUPT,
            at=str(path),
            problem=f"no readable manifest: {error}",
            remedy="delete the engine's folder in the store: the operator builds it again",
        ) from error


def _explain(error: Exception) -> Failure:
    if isinstance(error, ProductError):
        return error.failure
    if isinstance(error, torch.OutOfMemoryError):
        return Failure(
            reason=Reason.OUT_OF_GPU_MEMORY,
            at="loading",
            problem=str(error),
            remedy="use a GPU with more memory, more GPUs (spec.numGpus), or smaller spec.limits",
        )
    if isinstance(error, DeviceLostError):
        return Failure(
            reason=Reason.SERVER_FAILED,
            at="device",
            problem=str(error),
            remedy="the container starts again by itself; if it does not recover, look at the node's GPU",
        )
    return Failure(
        reason=Reason.INTERNAL,
        at="worker",
        problem=f"{type(error).__name__}: {error}",
        remedy="report it with the container's log",
    )


if __name__ == "__main__":
    raise SystemExit(main())
