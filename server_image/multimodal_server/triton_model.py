"""Runs in Triton's own process, between Triton and PyTriton's proxy model: errors reach clients as errors, with a code.

Without it PyTriton answers every error with code INTERNAL and a stack trace of its own files as the message, and on a
busy machine a model with several instances often cannot start: all but the first give the first one second. This file
is sent to Triton as the model's `model.py`, with PyTriton's own beside it as `pytriton_model.py`, and with
`triton_stream.py`; nothing else of this project is there, so it imports nothing else of it.
"""

from __future__ import annotations

import importlib
import json
import re
import socket
import time
from pathlib import Path
from typing import Any, Final

REFUSAL: Final = re.compile(r"multimodal-refusal:(\{.*\})")
GATE: Final = "open"
"""A file in PyTriton's workspace; the front makes it."""
HANDSHAKE_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.01


class TritonPythonModel:
    """PyTriton's model, with errors put right, and in the streaming model an eye on clients that go away."""

    def __init__(self) -> None:
        self._triton = importlib.import_module("triton_python_backend_utils")
        self._proxy = importlib.import_module(".pytriton_model", __package__).TritonPythonModel()
        self._first = True
        self._watch: Any = None
        """Of the streaming model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the proxy; the first instance offers a socket that all others ask for its configuration."""
        config = json.loads(args["model_config"])
        workspace = Path(config["parameters"]["workspace-path"]["string_value"])
        self._first = args["model_instance_name"].endswith("_0")
        if not self._first:
            _wait_for_handshake(workspace / f"{args['model_name']}-config.sock")
        self._proxy.initialize(args)
        if config.get("model_transaction_policy", {}).get("decoupled"):
            streaming = importlib.import_module(".triton_stream", __package__)
            self._watch = streaming.Watch(workspace, lambda wrong: self._error(wrong.error().message()))
            return
        # A model is ready when all its instances are: not before the worker has answered a question.
        while self._first and not (workspace / GATE).exists():
            time.sleep(POLL_SECONDS)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answer requests; Triton gives one at a time, since the model's largest batch is 1."""
        (request,) = requests
        if self._watch is not None:
            self._stream(request)
            return None
        empty = self._empty(request)
        if empty is not None:
            return [empty]
        try:
            answers: list[Any] = self._proxy.execute(requests)
        except self._triton.TritonModelException as error:
            return [self._error(str(error))]
        return answers

    def _stream(self, request: Any) -> None:  # noqa: ANN401 -- Triton's
        """Hand a request on; its responses come later."""
        empty = self._empty(request)
        if empty is not None:
            request.get_response_sender().send(empty, self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return
        watched = self._watch.take(request)
        self._proxy.execute([watched])
        self._watch.add(watched)

    def _empty(self, request: Any) -> Any | None:  # noqa: ANN401 -- Triton's
        """Refuse a tensor without elements, which PyTriton cannot send on."""
        empty = [tensor.name() for tensor in request.inputs() if 0 in tensor.shape()]
        if not empty:
            return None
        return self._refusal("INVALID_ARG", f"RequestRefused: {empty[0]}: has no elements; send at least one")

    def _error(self, said: str) -> Any:  # noqa: ANN401 -- Triton's
        """Make the response of what PyTriton says of an error: ours, where it holds one."""
        found = REFUSAL.search(said)
        if found is None:
            self._triton.Logger.log_error(said)
            return self._refusal("INTERNAL", "Internal: server: the request was lost; see its log")
        refusal = json.loads(found[1])
        return self._refusal(refusal["code"], refusal["message"])

    def _refusal(self, code: str, message: str) -> Any:  # noqa: ANN401 -- Triton's
        error = self._triton.TritonError(message, getattr(self._triton.TritonError, code))
        return self._triton.InferenceResponse(output_tensors=[], error=error)

    def finalize(self) -> None:
        """Stop the proxy; only the first instance owns shared memory, and each other one would wait a second."""
        if self._first:
            self._proxy.finalize()


def _wait_for_handshake(path: Path) -> None:
    """Wait until the first instance answers; PyTriton then asks it again, and is answered at once."""
    ends = time.monotonic() + HANDSHAKE_SECONDS
    while not _answers(path) and time.monotonic() < ends:
        time.sleep(POLL_SECONDS)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(HANDSHAKE_SECONDS)
        try:
            asking.connect(path.as_posix())
            asking.sendall(b"get_config\n")
            size = int.from_bytes(asking.recv(4, socket.MSG_WAITALL), "big")
            return size > 0 and len(asking.recv(size, socket.MSG_WAITALL)) == size
        except OSError:  # not made yet, or not listening yet
            return False
