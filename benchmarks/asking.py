"""The clients of `server.py`, in a process of their own, so that their time is not the server's.

It reads turns from its standard input, one JSON object a line, and answers each with a line. What a turn sends is made
before its clock starts: the port is measured, not the client.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import struct
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from PIL import Image
from tritonclient import grpc
from tritonclient.utils import np_to_triton_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

EDGE: Final = 336
GRAIN: Final = 8
"""Edge of a patch of one colour, before it is blurred: files are about as large as those of photographs."""
NOISE: Final = 4
QUALITY: Final = 85

Body = dict[str, Any]


def picture(random: np.random.Generator) -> NDArray[np.uint8]:
    """Make a picture like no other: [height, width, 3]."""
    coarse = random.integers(0, 256, (EDGE // GRAIN, EDGE // GRAIN, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((EDGE, EDGE), Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + random.integers(-NOISE, NOISE, smooth.shape), 0, 255).astype(np.uint8)


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
        """Say where; the first question connects."""
        self._turn = turn
        self._connection = http.client.HTTPConnection("127.0.0.1", turn["port"])

    def prepare(self, frame: NDArray[np.uint8]) -> Any:  # noqa: ANN401 -- `ask` knows
        """Make a request: path, body, headers."""
        text = self._turn["question"].encode()
        tensors = {
            "input_text": ("BYTES", [1, 1], struct.pack("<I", len(text)) + text),
            "input_media": ("UINT8", [1, 1, *frame.shape], frame.tobytes()),
            "max_output_len": ("INT64", [1, 1], struct.pack("<q", self._turn["tokens"])),
        }
        inputs = [
            {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}
            for name, (kind, shape, data) in tensors.items()
        ]
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        body = head + b"".join(data for _, _, data in tensors.values())
        return f"/v2/models/{self._turn['model']}/infer", body, {"Inference-Header-Content-Length": str(len(head))}

    def ask(self, request: Any) -> None:  # noqa: ANN401
        """Send it, and read the answer."""
        self._connection.request("POST", *request)
        response = self._connection.getresponse()
        said = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(said.decode())


class OpenAi(Http):
    """Chat completions, with the picture as a data URI."""

    def prepare(self, frame: NDArray[np.uint8]) -> Any:  # noqa: ANN401
        """Make a request: path, body, headers."""
        kind, file = self._turn["format"], io.BytesIO()
        Image.fromarray(frame).save(file, kind, quality=QUALITY)
        url = f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
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
        return "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}


class Grpc:
    """KServe v2 over gRPC."""

    def __init__(self, turn: Body) -> None:
        """Connect."""
        self._turn = turn
        self._client = grpc.InferenceServerClient(f"127.0.0.1:{turn['port']}")

    def prepare(self, frame: NDArray[np.uint8]) -> Any:  # noqa: ANN401
        """Make a request: its inputs."""
        arrays = {
            "input_text": np.array([[self._turn["question"].encode()]], dtype=object),
            "input_media": frame[None, None],
            "max_output_len": np.array([[self._turn["tokens"]]], dtype=np.int64),
        }
        inputs = []
        for name, array in arrays.items():
            inputs.append(grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        return inputs

    def ask(self, request: Any) -> None:  # noqa: ANN401
        """Send it, and read the answer."""
        self._client.infer(self._turn["model"], request)


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
