"""Runs in Triton's own process, as the `model.py` of both models.

Whole answers come over `triton_calls.py`. Answers in pieces come through PyTriton's proxy model, which knows errors
only as stack traces of its own files, with code INTERNAL: they are put right here. Beside this file lies what it
imports, and nothing else of this project: `triton_calls.py` and `sockets.py`, or PyTriton's files, its own model as
`pytriton_model.py`, and `triton_stream.py`.
"""

from __future__ import annotations

import asyncio  # noqa: F401 -- Triton itself takes it when it has called a model for the first time: 35 ms of a request
import importlib
import json
import re
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

REFUSAL: Final = re.compile(r"multimodal-refusal:(\{.*\})")


class TritonPythonModel:
    """A model that the front answers."""

    def __init__(self) -> None:
        self._triton = importlib.import_module("triton_python_backend_utils")
        self._final = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self._output = ""
        self._whole: Any = None
        """`triton_calls.py`, of the model of whole answers."""
        self._calls: Any = None
        """Its calls."""
        self._proxy: Any = None
        """PyTriton's model, of the streaming model."""
        self._watch: Any = None
        """Of the streaming model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Begin to listen to the front."""
        config = json.loads(args["model_config"])
        workspace = Path(config["parameters"]["workspace-path"]["string_value"])
        if config.get("model_transaction_policy", {}).get("decoupled"):
            self._proxy = importlib.import_module(".pytriton_model", __package__).TritonPythonModel()
            self._proxy.initialize(args)
            streaming = importlib.import_module(".triton_stream", __package__)
            self._watch = streaming.Watch(workspace, lambda wrong: self._error(wrong.error().message()))
            return
        (output,) = config["output"]
        self._output = output["name"]
        self._whole = importlib.import_module(".triton_calls", __package__)
        self._calls = self._whole.Calls(workspace / self._whole.SOCKET)

    def execute(self, requests: list[Any]) -> None:
        """Ask; Triton gives one request at a time, since the model's largest batch is 1, and is answered later."""
        (request,) = requests
        empty = self._empty(request)
        if empty is not None:
            request.get_response_sender().send(empty, self._final)
        elif self._watch is None:
            self._ask(request)
        else:
            self._stream(request)

    def _ask(self, request: Any) -> None:  # noqa: ANN401 -- Triton's
        """Ask the front for a whole answer."""
        sender = request.get_response_sender()
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        self._calls.ask(tensors, self._whole.Waiting(partial(self._give, sender), sender.is_cancelled))

    def _give(self, sender: Any, said: Any) -> None:  # noqa: ANN401 -- Triton's, and what the front says
        """Send the answer, or that there is none."""
        try:
            response = self._lost() if said is None else self._response(said)
        except Exception as error:  # noqa: BLE001 -- of whatever kind: nobody else would answer
            self._triton.Logger.log_error(repr(error))
            response = self._lost()
        try:
            sender.send(response, self._final)
        except self._triton.TritonModelException as error:
            self._triton.Logger.log_error(str(error))

    def _response(self, said: Any) -> Any:  # noqa: ANN401 -- what the front says, and Triton's
        """Make what Triton takes of what the front says."""
        if "texts" not in said:
            return self._refusal(said["code"], said["message"])
        texts = np.array([[text.encode()] for text in said["texts"]], dtype=object)
        return self._triton.InferenceResponse(output_tensors=[self._triton.Tensor(self._output, texts)])

    def _stream(self, request: Any) -> None:  # noqa: ANN401 -- Triton's
        """Hand a request on; its responses come later."""
        watched = self._watch.take(request)
        self._proxy.execute([watched])
        self._watch.add(watched)

    def _empty(self, request: Any) -> Any | None:  # noqa: ANN401 -- Triton's
        """Refuse a tensor without elements, which cannot be sent on."""
        empty = [tensor.name() for tensor in request.inputs() if 0 in tensor.shape()]
        if not empty:
            return None
        return self._refusal("INVALID_ARG", f"RequestRefused: {empty[0]}: has no elements; send at least one")

    def _error(self, said: str) -> Any:  # noqa: ANN401 -- Triton's
        """Make the response of what PyTriton says of an error: ours, where it holds one."""
        found = REFUSAL.search(said)
        if found is None:
            self._triton.Logger.log_error(said)
            return self._lost()
        refusal = json.loads(found[1])
        return self._refusal(refusal["code"], refusal["message"])

    def _refusal(self, code: str, message: str) -> Any:  # noqa: ANN401 -- Triton's
        error = self._triton.TritonError(message, getattr(self._triton.TritonError, code))
        return self._triton.InferenceResponse(output_tensors=[], error=error)

    def _lost(self) -> Any:  # noqa: ANN401 -- Triton's
        return self._refusal("INTERNAL", "Internal: server: the request was lost; see its log")

    def finalize(self) -> None:
        """Stop listening."""
        if self._proxy is None:
            self._calls.close()
        else:
            self._proxy.finalize()
