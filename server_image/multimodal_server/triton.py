"""Triton, through PyTriton: its process, what it is told at its start, and its end."""

from __future__ import annotations

import http.client
import logging
import os
import re
import signal
import socket
import tempfile
import threading
import time
import warnings
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytriton.models.manager
import pytriton.triton
from pytriton.client import ModelClient
from pytriton.client.warnings import NotSupportedTimeoutWarning
from pytriton.model_config import ModelConfig
from pytriton.model_config import Tensor as TritonTensor

from multimodal_api import wire
from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_server import leavings, memory, triton_stream
from multimodal_server.gone import Gone
from multimodal_server.models import WholeAnswers, make_model
from multimodal_server.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from pytriton.models.model import Model
    from pytriton.proxy.types import Request

    from multimodal_server.calls import Answer
    from multimodal_server.whole import Caller

    Stream = Callable[[Mapping[str, NDArray[Any]]], AsyncGenerator[list[str], None]]
    Outputs = list[dict[str, NDArray[Any]]]
    Pieces = Callable[[list[Request]], AsyncGenerator[Outputs, None]]

LOG: Final = logging.getLogger(__name__)

START_SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.05
CALL_SECONDS: Final = 5.0
QUIET_SECONDS: Final = 1.0
"""Longer than a request takes from Triton's queue to us, and an answer from us to the wire, on a busy machine."""
LOAD_SECONDS: Final = 120.0
"""Until the process of a model has started: ten times what it takes on a busy machine. Triton itself waits for ever
for one that does not come up; after this it is started again."""
ORPHAN_SECONDS: Final = 10.0
_LOOPBACK: Final = "127.0.0.1"
_NUMPY: Final = {"BYTES": bytes, "UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where Triton listens."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    """On the loopback interface."""

    @property
    def own_host(self) -> str:
        """Give the address at which this process reaches the HTTP port."""
        return {"0.0.0.0": _LOOPBACK, "::": "::1"}.get(self.host, self.host)  # noqa: S104


class _Count:
    """How many threads are inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def __enter__(self) -> None:
        with self._lock:
            self.value += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.value -= 1


class _Server(pytriton.triton.Triton):  # type: ignore[misc]  # pytriton ships no types
    """Triton with settings that PyTriton does not offer."""

    def _prepare_triton_config(self, workspace: object) -> None:
        super()._prepare_triton_config(workspace)
        # Else Triton starts every model's process once more, only to ask for what the configuration already says.
        self._triton_server_config["strict-model-config"] = True
        self._triton_server_config["log-info"] = False
        # PyTriton's list of settings is older than this one.
        self._triton_server_config.server_args()["grpc-max-connection-age"] = 1000 * wire.GRPC_CONNECTION_SECONDS

    @property
    def pid(self) -> int:
        """The process."""
        number: int = self._triton_server._tritonserver_running_cmd.pid  # noqa: SLF001
        return number

    def _on_tritonserver_exit(self, *_: object) -> None:
        """Leave alone what listens at these ports by now: PyTriton would unload its models. See `Triton.forget`."""


class Triton:
    """The server process, and the one model in it, under two names: whole answers, and answers in pieces."""

    def __init__(self, addresses: Addresses, *, stop_seconds: float) -> None:
        """Prepare.

        Args:
            addresses: where to listen.
            stop_seconds: how long requests may go on after `stop` is called.
        """
        pytriton.triton.Model = make_model
        pytriton.models.manager.ModelClient = partial(ModelClient, inference_timeout_s=LOAD_SECONDS)
        # It warns that it waits longer for a model than for a server: so it should.
        warnings.filterwarnings("ignore", category=NotSupportedTimeoutWarning)
        # Its record of a refused request is a stack trace; ours is one line.
        logging.getLogger("pytriton.proxy.inference").setLevel(logging.CRITICAL)
        self._addresses = addresses
        self._stop_seconds = stop_seconds
        self._models: tuple[str, ...] = ()
        self._gone: Gone | None = None
        self._running = _Count()
        self._folder = Path(tempfile.gettempdir()) / f"multimodal-triton-{os.getpid()}"
        # A container that was ended by force starts again with the same number, in a pod whose volumes live on.
        leavings.clear(self._folder)
        self._starts = 0
        self._opened = threading.Event()

    def start(self) -> None:
        """Start the process and wait until it listens. Call it from a thread that lives as long as the process should.

        (The kernel ends Triton when the thread that started it ends.) After `forget` it may be called again.

        Raises:
            ProductError: the process ended, or took too long.
        """
        self._starts += 1
        self._workspace = self._folder / str(self._starts)
        self._server = _Server(
            config=pytriton.triton.TritonConfig(
                http_address=self._addresses.host,
                http_port=self._addresses.http_port,
                grpc_address=self._addresses.host,
                grpc_port=self._addresses.grpc_port,
                metrics_address=_LOOPBACK,
                metrics_port=self._addresses.metrics_port,
                exit_timeout_secs=0,  # `stop` has waited before: Triton itself would wait for idle connections too
            ),
            workspace=self._workspace,
            triton_lifecycle_policy=pytriton.triton.TritonLifecyclePolicy(local_model_store=True),
        )
        self._server._run_server()  # noqa: SLF001 -- `run` would wait two minutes for a process that has ended
        ends = time.monotonic() + START_SECONDS
        while not self._listens():
            if not self._server.is_alive():
                raise _start_failed("the process ended", self._addresses)
            if time.monotonic() > ends:
                raise _start_failed(f"it does not listen after {START_SECONDS:.0f} seconds", self._addresses)
            time.sleep(POLL_SECONDS)
        self._server.connect()

    def publish(
        self,
        name: str,
        version: int,
        answer: Answer,
        stream: Stream,
        *,
        inputs: Sequence[wire.Tensor],
        threads: int,
    ) -> None:
        """Offer a model. It is ready when `open` has been called and this returns.

        Args:
            name: on the wire.
            version: on the wire.
            answer: gives the texts of one request; called from `threads` threads; raises nothing but ProductError.
            stream: the same in pieces, for the name with `wire.STREAM_SUFFIX`; called from one event loop.
            inputs: tensors of a request.
            threads: that answer.
        """
        gone = self._gone = Gone(self._workspace / triton_stream.SOCKET)
        # This one is loaded at once, and its requests wait for the engine; the other is loaded when the engine is
        # there: whoever waits for it waits for both. (Its processes could start now and wait. But Triton asks a process
        # that starts every second whether it lives, and ends as a whole when on a busy machine one answer is late.)
        self._offer(name + wire.STREAM_SUFFIX, version, _streaming(stream, self._running, gone), inputs)
        self._opened.wait()
        self._offer(name, version, [WholeAnswers(_counted(answer, self._running), threads)], inputs)
        memory.bound(self._server.pid, memory.room())
        self._models = (name, name + wire.STREAM_SUFFIX)

    def _offer(
        self, name: str, version: int, function: list[WholeAnswers] | Pieces, inputs: Sequence[wire.Tensor]
    ) -> None:
        """Load one model: the one that gives whole answers, or the one that gives pieces."""
        self._server.bind(
            name,
            function,
            inputs=[_describe(tensor) for tensor in inputs],
            outputs=[_describe(wire.OUTPUTS)],
            model_version=version,
            # Largest batch 1: Triton never merges requests of two users, and refuses a request of several rows.
            # No batcher: its thread would only be one more on the way. Both models take each request at once.
            config=ModelConfig(max_batch_size=1, batcher=None, decoupled=not isinstance(function, list)),
        )

    def open(self) -> None:
        """Let the model that `publish` offers become ready."""
        self._opened.set()

    def is_alive(self) -> bool:
        """Say whether process and model are there."""
        return bool(self._server.is_alive())

    def forget(self) -> None:
        """End the process and those of its models, and leave nothing of it but threads that end with what they do."""
        with suppress(ProcessLookupError):
            os.kill(self._server.pid, signal.SIGKILL)
        leavings.end_processes(self._workspace)
        models = list(self._server._model_manager.models)  # noqa: SLF001
        threading.Thread(target=_clean, args=(models, self._gone), name="clean", daemon=True).start()
        self._models, self._gone = (), None
        leavings.clear(self._workspace)
        ends = time.monotonic() + ORPHAN_SECONDS
        # Processes that were ended hold copies of its sockets until the kernel has taken them down.
        while not self._ports_are_free() and time.monotonic() < ends:
            time.sleep(POLL_SECONDS)

    def _ports_are_free(self) -> bool:
        try:
            for port in (self._addresses.http_port, self._addresses.grpc_port):
                check_port(self._addresses.host, port, name="port")
        except ProductError:
            return False
        return True

    def stop(self) -> None:
        """Refuse new requests, and let those that Triton has taken end; then as `discard`."""
        if self._models:
            self._unload()
        self.discard()

    def discard(self) -> None:
        """Leave nothing on the disk. Then this process must end, by `os._exit`.

        The kernel ends Triton with it, at once, where PyTriton itself takes seconds.
        """
        leavings.clear(self._folder)

    def _unload(self) -> None:
        """Take the models off the wire, and wait until nothing that Triton had taken is waiting or being answered.

        Triton would tell when it has ended their processes too, but takes a second for each.
        """
        ends = time.monotonic() + self._stop_seconds
        token = {pytriton.triton.TRITON_ACCESS_HEADER: self._server.get_access_token()}
        for model in self._models:
            self._call("POST", self._addresses.http_port, f"/v2/repository/models/{model}/unload", headers=token)
        quiet_since = time.monotonic()
        while time.monotonic() < quiet_since + QUIET_SECONDS:
            if self._running.value or self._waiting():
                quiet_since = time.monotonic()
            if quiet_since > ends:
                LOG.warning("requests were still running at the end of the grace period")
                return
            time.sleep(POLL_SECONDS)

    def _waiting(self) -> bool:
        """Say whether Triton's queues hold requests."""
        page = self._call("GET", self._addresses.metrics_port, "/metrics")
        found = re.findall(rb"^nv_inference_pending_request_count{.*} (.*)$", page, re.MULTILINE)
        return any(float(count) > 0 for count in found)

    def _call(self, method: str, port: int, path: str, headers: Mapping[str, str] | None = None) -> bytes:
        """Ask Triton something; empty when it does not answer."""
        host = _LOOPBACK if port == self._addresses.metrics_port else self._addresses.own_host
        connection = http.client.HTTPConnection(host, port, timeout=CALL_SECONDS)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            return connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return b""
        finally:
            connection.close()

    def _listens(self) -> bool:
        connection = http.client.HTTPConnection(self._addresses.own_host, self._addresses.http_port, timeout=1)
        try:
            connection.request("GET", "/v2/health/live")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def free_port() -> int:
    """Find a port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def check_port(host: str, port: int, *, name: str) -> None:
    """Refuse a port that cannot be listened on: Triton's own words for it are hard to find.

    Raises:
        ProductError: it is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ProductError(
                Reason.SERVER_FAILED,
                at=f"--{name.replace('_', '-')}",
                problem=f"cannot listen on {host} port {port}: {error.strerror}",
                remedy="choose a port above 1023 that nothing else in the pod uses (spec.triton)",
            ) from None


def _clean(models: Iterable[Model], gone: Gone | None) -> None:
    """End the threads that answered for a process that is gone."""
    if gone is not None:
        gone.close()
    for model in models:
        model.clean()


def _counted(answer: Answer, running: _Count) -> Answer:
    def counted(tensors: Mapping[str, NDArray[Any]], caller: Caller) -> None:
        with running:
            answer(tensors, caller)

    return counted


def _streaming(stream: Stream, running: _Count, gone: Gone) -> Pieces:
    """Make the one instance of the streaming model: all its requests share an event loop."""

    async def infer(requests: list[Request]) -> AsyncGenerator[Outputs, None]:
        (request,) = requests
        try:
            with running, gone.cancels(request.parameters[triton_stream.NUMBER]):
                async with aclosing(stream(request.data)) as pieces:
                    async for texts in pieces:
                        yield [{wire.OUTPUTS.name: np.array([[text.encode()] for text in texts], dtype=object)}]
        except ProductError as error:
            raise Refusal(error.failure) from None

    return infer


def _describe(tensor: wire.Tensor) -> TritonTensor:
    return TritonTensor(name=tensor.name, dtype=_NUMPY[tensor.datatype], shape=tensor.shape, optional=tensor.optional)


def _start_failed(problem: str, addresses: Addresses) -> ProductError:
    return ProductError(
        Reason.SERVER_FAILED,
        at="triton",
        problem=problem,
        remedy=f"see its log lines above; are the ports {addresses.http_port} and {addresses.grpc_port} free?",
    )
