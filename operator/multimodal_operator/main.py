"""`multimodal-operator`: arguments, wiring, and kopf as the trigger, nothing more."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, Final

import kopf

from multimodal_api.logs import FIELDS, configure
from multimodal_operator import health
from multimodal_operator.apply import Writer
from multimodal_operator.inquiries import HttpProgressReader, Inquiries
from multimodal_operator.kinds import RESOURCE, WATCHED_CHILDREN, Kind
from multimodal_operator.kube import Kube, KubeError
from multimodal_operator.mirror import Mirror
from multimodal_operator.observe import Observer
from multimodal_operator.operate import SELECTOR, Operator
from multimodal_operator.reconcile import Reconciler
from multimodal_operator.settings import START_DEADLINE_SECONDS, STOP_DEADLINE_SECONDS, Images, Settings
from multimodal_operator.transport import HttpTransport, log_in
from multimodal_operator.workqueue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

PROGRAM: Final = "multimodal-operator"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until SIGTERM."""
    options = _parser().parse_args(arguments)
    configure(PROGRAM, logging.getLevelName(options.log_level.upper()))
    for name in ("kopf", "aiohttp"):  # they only hand us events, and speak when something goes wrong
        logging.getLogger(name).setLevel(logging.WARNING)
    settings = Settings(
        images=Images(
            builder=options.builder_image, server=options.server_image, pull_policy=options.image_pull_policy
        ),
        namespaces=() if options.all_namespaces else tuple(options.namespace),
        health_port=options.health_port,
    )
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run(settings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Operator for MultimodalDeployments.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--namespace", nargs="+", metavar="NAME", help="namespaces to look after")
    where.add_argument("--all-namespaces", action="store_true", help="look after all namespaces")
    parser.add_argument("--builder-image", required=True, metavar="IMAGE", help="default image of build Jobs")
    parser.add_argument("--server-image", required=True, metavar="IMAGE", help="default image of serving pods")
    parser.add_argument("--image-pull-policy", choices=("Always", "IfNotPresent", "Never"), default="IfNotPresent")
    parser.add_argument("--health-port", type=int, default=8080, metavar="PORT", help="/healthz, /readyz, /metrics")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser


async def run(settings: Settings) -> None:
    """Wire the parts and run them.

    Raises:
        KubeError: The API server did not answer, or does not know the resource, within the start's deadline.
    """
    task = asyncio.current_task()
    if task is not None:  # as process 1 of a container we have no default action for SIGTERM
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    pulse = health.Health()
    kube, reader, mirror, queue = Kube(HttpTransport()), HttpProgressReader(), Mirror(), WorkQueue()
    reconciler = Reconciler(
        Observer(mirror, Inquiries(kube, reader, time.monotonic), settings.images),
        Writer(kube, mirror, os.environ.get("POD_NAME", socket.gethostname())),
    )
    operator = Operator(
        kube=kube, mirror=mirror, queue=queue, reconciler=reconciler, health=pulse, namespaces=settings.namespaces
    )
    stopping = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(kube.close)
        stack.push_async_callback(reader.close)
        stack.push_async_callback((await health.serve(pulse, settings.health_port)).cleanup)
        await _first_lists(operator)
        # Made before kopf starts, which on its way out ends every task that it finds to be younger than itself.
        workers = asyncio.create_task(operator.work(stopping))
        resync = asyncio.create_task(operator.resync_forever())
        await asyncio.sleep(0)  # now the workers exist too
        pulse.ready = True
        logger.info("started", extra={FIELDS: {"namespaces": settings.namespaces or "all"}})
        try:
            await kopf.operator(
                registry=triggers(operator),
                settings=kopf_settings(),
                standalone=True,
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
            )
        finally:
            pulse.ready = False
            resync.cancel()
            stopping.set()
            async with asyncio.timeout(STOP_DEADLINE_SECONDS):
                await workers
            logger.info("stopped")


async def _first_lists(operator: Operator) -> None:
    async with asyncio.timeout(START_DEADLINE_SECONDS):
        while True:
            try:
                await operator.resync()
            except KubeError as error:
                # Also when the CustomResourceDefinition is not there yet.
                logger.warning("waiting for the API server", extra={FIELDS: {"error": str(error)}})
                await asyncio.sleep(1.0)
            else:
                return


def triggers(operator: Operator) -> kopf.OperatorRegistry:
    """Make every watch event of the resource and its children known to the operator; kopf does nothing else."""
    registry = kopf.OperatorRegistry()

    def watch(kind: Kind) -> None:
        async def on_event(event: kopf.RawEvent, **_: Any) -> None:  # noqa: ANN401 -- kopf's protocol
            await operator.seen(kind, event["type"], dict(event["object"]))

        kopf.on.event(kind.group, kind.api_version.rpartition("/")[2], kind.plural, registry=registry)(on_event)

    for kind in (RESOURCE, *WATCHED_CHILDREN):
        watch(kind)
    kopf.on.login(registry=registry)(_log_in)
    return registry


def _log_in(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo:  # noqa: ANN401 -- kopf's protocol
    return log_in(settings)


def kopf_settings() -> kopf.OperatorSettings:
    """Keep kopf from anything but watching: no events, no peering, no scanning of namespaces and definitions."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    for kind in WATCHED_CHILDREN:
        settings.watching.label_selectors[kind.group, kind.api_version.rpartition("/")[2], kind.plural] = SELECTOR
    return settings


if __name__ == "__main__":
    main()
