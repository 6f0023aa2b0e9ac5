from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

DTYPES = {"UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}


@dataclass
class Asked:
    path: str
    tensors: dict[str, NDArray[Any]]


@dataclass
class KServe:
    """A server of the protocol's other side, written from its description and not from the client."""

    address: str = ""
    asked: list[Asked] = field(default_factory=list)
    ready_after: int = 0
    """Probes that are answered with 400 first."""
    status: int = 200
    error: str = ""
    answers: list[bytes] = field(default_factory=lambda: [b"a red circle"])


def read_tensors(header: dict[str, Any], binary: bytes) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    for described in header["inputs"]:
        size = described["parameters"]["binary_data_size"]
        part, binary = binary[:size], binary[size:]
        if described["datatype"] == "BYTES":
            texts = []
            while part:
                (length,) = struct.unpack_from("<I", part)
                texts.append(part[4 : 4 + length])
                part = part[4 + length :]
            tensor = np.array(texts, dtype=object)
        else:
            tensor = np.frombuffer(part, DTYPES[described["datatype"]])
        tensors[described["name"]] = tensor.reshape(described["shape"])
    assert binary == b""
    return tensors


@pytest.fixture
def server() -> Iterator[KServe]:
    state = KServe()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ready = state.ready_after == 0
            state.ready_after = max(0, state.ready_after - 1)
            self.answer(200 if ready else 400, b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            length = int(self.headers["Inference-Header-Content-Length"])
            state.asked.append(Asked(self.path, read_tensors(json.loads(body[:length]), body[length:])))
            if state.status != 200:
                self.answer(state.status, json.dumps({"error": state.error}).encode())
                return
            binary = b"".join(struct.pack("<I", len(text)) + text for text in state.answers)
            output = {
                "name": "outputs",
                "datatype": "BYTES",
                "shape": [len(state.answers), 1],
                "parameters": {"binary_data_size": len(binary)},
            }
            header = json.dumps({"model_name": "m", "outputs": [output]}).encode()
            self.answer(200, header + binary, str(len(header)))

        def answer(self, status: int, body: bytes, header_length: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if header_length is not None:
                self.send_header("Inference-Header-Content-Length", header_length)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
    state.address = f"127.0.0.1:{listening.server_address[1]}"
    yield state
    listening.shutdown()
    listening.server_close()
