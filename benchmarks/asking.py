"""The clients of `server.py`, in a process of their own, so that their time is not the server's.

It reads turns from its standard input, one JSON object a line, and answers each with a line. What a turn sends is made
before its clock starts, and an answer is read without a library that looks at it: the port is measured, not the client.
"""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import struct
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from http2 import Unary
from PIL import Image
from tritonclient.grpc import service_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

EDGE: Final = 336
GRAIN: Final = 8
"""Edge of a patch of one colour, before it is blurred: files are about as large as those of photographs."""
NOISE: Final = 4
QUALITY: Final = 85
READ_BYTES: Final = 2**16
HEAD: Final = re.compile(
    rb"HTTP/1\.1 (?P<status>\d+) .*?\r\ncontent-length: *(?P<length>\d+)\r\n(?:.*?\r\n)??\r\n",
    re.DOTALL | re.IGNORECASE,
)
"""Of a whole answer."""

Body = dict[str, Any]


def picture(random: np.random.Generator) -> NDArray[np.uint8]:
    """Make a picture like no other: [height, width, 3]."""
    coarse = random.integers(0, 256, (EDGE // GRAIN, EDGE // GRAIN, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((EDGE, EDGE), Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + random.integers(-NOISE, NOISE, smooth.shape), 0, 255).astype(np.uint8)


def file_of(frame: NDArray[np.uint8], kind: str) -> bytes:
    """Write a picture as a file of this kind, a name of Pillow's."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, kind, quality=QUALITY)
    return file.getvalue()


class Pictures(NamedTuple):
    """The pictures of one turn."""

    seed: int
    """Of turns that are compared: they show the same, so that answers take as many tokens."""
    mark: int
    """Of the one way among those, below 8: a corner differs, so that nobody finds another's picture encoded."""
    count: int

    def make(self) -> Iterator[NDArray[np.uint8]]:
        """Give them, each like no other."""
        random = np.random.default_rng(self.seed)
        for _ in range(self.count):
            frame = picture(random)
            frame[:GRAIN, :GRAIN] = 32 * self.mark
            yield frame


class Http:
    """KServe v2 over HTTP, tensors in binary; one connection that stays open."""

    def __init__(self, turn: Body) -> None:
        """Connect."""
        self._turn = turn
        self._socket = socket.create_connection(("127.0.0.1", turn["port"]))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def prepare(self, frame: NDArray[np.uint8]) -> Any:  # noqa: ANN401 -- `ask` knows
        """Make a request."""
        sent = tensors(self._turn, frame)
        inputs = [
            {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}
            for name, kind, shape, data in sent
        ]
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        body = head + b"".join(tensor.data for tensor in sent)
        return post(f"/v2/models/{self._turn['model']}/infer", body, f"Inference-Header-Content-Length: {len(head)}")

    def ask(self, request: Any) -> None:  # noqa: ANN401
        """Send it, and read the answer."""
        self._socket.sendall(request)
        said = b""
        while (head := HEAD.match(said)) is None or len(said) < head.end() + int(head["length"]):
            part = self._socket.recv(READ_BYTES)
            if not part:
                raise RuntimeError("the connection was closed")
            said += part
        if head["status"] != b"200":
            raise RuntimeError(said.decode())


class Tensor(NamedTuple):
    """One input."""

    name: str
    datatype: str
    shape: list[int]
    data: bytes


def tensors(turn: Body, frame: NDArray[np.uint8]) -> list[Tensor]:
    """Make the inputs of a request."""
    text = turn["question"].encode()
    return [
        Tensor("input_text", "BYTES", [1, 1], struct.pack("<I", len(text)) + text),
        Tensor("input_media", "UINT8", [1, 1, *frame.shape], frame.tobytes()),
        Tensor("max_output_len", "INT64", [1, 1], struct.pack("<q", turn["tokens"])),
    ]


def post(path: str, body: bytes, header: str) -> bytes:
    """Make a request of HTTP."""
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", header)
    return "\r\n".join((*lines, "", "")).encode() + body


class OpenAi(Http):
    """Chat completions, with the picture as a data URI."""

    def prepare(self, frame: NDArray[np.uint8]) -> Any:  # noqa: ANN401
        """Make a request."""
        kind = self._turn["format"]
        url = f"data:image/{kind.lower()};base64,{base64.b64encode(file_of(frame, kind)).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": self._turn["question"]},
        ]
        body = {
            "model": self._turn["model"],
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_completion_tokens": self._turn["tokens"],
        }
        return post("/v1/chat/completions", json.dumps(body).encode(), "Content-Type: application/json")


class Grpc:
    """KServe v2 over gRPC."""

    def __init__(self, turn: Body) -> None:
        """Connect."""
        self._turn = turn
        self._infer = Unary(turn["port"], "/inference.GRPCInferenceService/ModelInfer")

    def prepare(self, frame: NDArray[np.uint8]) -> Any:  # noqa: ANN401 -- `ask` knows
        """Make a request."""
        request = service_pb2.ModelInferRequest(model_name=self._turn["model"])
        for name, kind, shape, data in tensors(self._turn, frame):
            request.inputs.add(name=name, datatype=kind, shape=shape)
            request.raw_input_contents.append(data)
        return request.SerializeToString()

    def ask(self, request: Any) -> None:  # noqa: ANN401
        """Send it, and wait for the answer."""
        self._infer.call(request)


WAYS: Final = {"http": Http, "grpc": Grpc, "openai": OpenAi}


def take(turn: Body) -> Body:
    """Ask so many questions, some at once.

    Args:
        turn: the way, its port, the model, the question and its tokens, `Pictures` and a concurrency.

    Returns:
        When all began, when each question was asked and answered, and the CPU time of this process meanwhile.
    """
    pictures = Pictures(*turn["pictures"])
    clients = [WAYS[turn["way"]](turn) for _ in range(turn["concurrency"])]
    waiting = deque(map(clients[0].prepare, pictures.make()))
    moments: list[tuple[float, float]] = []
    together = threading.Barrier(len(clients) + 1)

    def ask_some(client: Http | Grpc) -> None:
        together.wait()
        with suppress(IndexError):
            while True:
                request = waiting.popleft()
                asked = time.perf_counter()
                client.ask(request)
                moments.append((asked, time.perf_counter()))

    threads = [threading.Thread(target=ask_some, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    cpu = time.process_time()
    together.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    if len(moments) < pictures.count:
        raise RuntimeError("a request failed")
    return {"begun": begun, "moments": moments, "cpu": time.process_time() - cpu}


def main() -> None:
    """Take turns until there are no more."""
    for line in sys.stdin:
        print(json.dumps(take(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
