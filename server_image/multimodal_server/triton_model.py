"""Runs in Triton's own process, between Triton and PyTriton's proxy model: errors reach clients as errors, with a code.

Without it PyTriton answers every error with code INTERNAL and a stack trace of its own files as the message, and on a
busy machine a model with several instances often cannot start: all but the first give the first one second. This file
is sent to Triton as the model's `model.py`, with PyTriton's own beside it as `pytriton_model.py`; nothing else of this
project is there, so it imports nothing of it.
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
    """PyTriton's model, with errors put right."""

    def __init__(self) -> None:
        self._triton = importlib.import_module("triton_python_backend_utils")
        self._proxy = importlib.import_module(".pytriton_model", __package__).TritonPythonModel()
        self._first = True

    def initialize(self, args: dict[str, str]) -> None:
        """Start the proxy; the first instance offers a socket that all others ask for its configuration."""
        workspace = Path(json.loads(args["model_config"])["parameters"]["workspace-path"]["string_value"])
        self._first = args["model_instance_name"].endswith("_0")
        if not self._first:
            _wait_for_handshake(workspace / f"{args['model_name']}-config.sock")
        self._proxy.initialize(args)
        # A model is ready when all its instances are: not before the worker has answered a question.
        while self._first and not (workspace / GATE).exists():
            time.sleep(POLL_SECONDS)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests; Triton gives one at a time, since the model's largest batch is 1."""
        empty = [tensor.name() for request in requests for tensor in request.inputs() if 0 in tensor.shape()]
        if empty:  # PyTriton cannot send such a tensor on
            return self._refuse(
                requests, "INVALID_ARG", f"RequestRefused: {empty[0]}: has no elements; send at least one"
            )
        try:
            answers: list[Any] = self._proxy.execute(requests)
        except self._triton.TritonModelException as error:
            found = REFUSAL.search(str(error))
            if found is None:
                self._triton.Logger.log_error(str(error))
                return self._refuse(requests, "INTERNAL", "Internal: server: the request was lost; see its log")
            refusal = json.loads(found[1])
            return self._refuse(requests, refusal["code"], refusal["message"])
        return answers

    def _refuse(self, requests: list[Any], code: str, message: str) -> list[Any]:
        error = self._triton.TritonError(message, getattr(self._triton.TritonError, code))
        return [self._triton.InferenceResponse(output_tensors=[], error=error) for _ in requests]

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
