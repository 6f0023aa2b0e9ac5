"""Questions over each port of a server, where there is one with a client that this project did not write.

Nothing of the tests is imported: the file is sent into a pod too, and run there. It reads JSON from standard input:
`host`, `model`, `family`, and `questions`, each with `text`, `medium` (base64) and `kind`; it prints the answers by
protocol.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import queue
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import np_to_triton_dtype

from multimodal_api import wire
from multimodal_api.families import Family
from multimodal_client import media

SECONDS: Final = 120
RETRY_BUFFER = ("grpc.per_rpc_retry_buffer_size", 2**27)
"""gRPC sends again what meets the renewal of a connection, if it fits here: 256 KiB by default."""
LONGEST: Final = 32
"""Of an answer, in tokens: what the tiny models' resources allow."""


@dataclass(frozen=True)
class Server:
    """Where a model is."""

    host: str
    model: str
    family: Family
    http: int = 8000
    grpc: int = 8001
    openai: int = 9000


@dataclass(frozen=True)
class Question:
    """About a medium."""

    text: str
    medium: bytes
    """Content of its file."""
    kind: str
    """picture, video or sound."""


@dataclass(frozen=True)
class Call:
    """A request as it goes over HTTP."""

    port: int
    path: str
    body: bytes
    headers: dict[str, str]
    read: Callable[[http.client.HTTPResponse], str]
    """Reads an answer of status 200."""


class NotAnsweredError(Exception):
    """An error as the server told it."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body[:300].decode(errors='replace')}")
        self.status = status
        self.body = body


def tensors(server: Server, question: Question) -> dict[str, np.ndarray[Any, Any]]:
    """Everything that Triton is sent."""
    return {
        wire.INPUT_TEXT.name: np.array([[question.text.encode()]], dtype=object),
        wire.MAX_OUTPUT_LEN.name: np.array([[LONGEST]]),
        **media.load(question.medium, server.family).tensors,
    }


def triton_inputs(library: Any, given: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
    """The tensors as one of Triton's client libraries takes them."""
    inputs = []
    for name, tensor in given.items():
        inputs.append(library.InferInput(name, tensor.shape, np_to_triton_dtype(tensor.dtype)))
        inputs[-1].set_data_from_numpy(tensor)
    return inputs


def triton_call(server: Server, question: Question) -> Call:
    """A question to Triton's HTTP port."""
    return tensor_call(server, tensors(server, question))


def tensor_call(server: Server, given: dict[str, np.ndarray[Any, Any]]) -> Call:
    """Tensors to Triton's HTTP port, in the bytes of its own client library."""
    library = tritonclient.http
    body, header = library.InferenceServerClient.generate_request_body(
        triton_inputs(library, given),
        outputs=[library.InferRequestedOutput(wire.OUTPUTS.name, binary_data=True)],
    )

    def read(response: http.client.HTTPResponse) -> str:
        length = int(response.headers["Inference-Header-Content-Length"])
        result = library.InferenceServerClient.parse_response_body(response.read(), header_length=length)
        return text_of(result)

    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(header)}
    return Call(server.http, f"/v2/models/{server.model}/infer", body, headers, read)


def openai_call(server: Server, question: Question, *, stream: bool = False) -> Call:
    """A question to the OpenAI port."""
    messages = [{"role": "user", "content": [content(question), {"type": "text", "text": question.text}]}]
    body = {"model": server.model, "messages": messages, "temperature": 0, "max_tokens": LONGEST, "stream": stream}
    read = read_stream if stream else read_whole
    return Call(
        server.openai, "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}, read
    )


def content(question: Question) -> dict[str, Any]:
    """A medium as a part of a message."""
    data = base64.b64encode(question.medium).decode()
    match question.kind:
        case "picture":
            return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        case "video":
            return {"type": "video_url", "video_url": {"url": f"data:image/gif;base64,{data}"}}
        case _:
            return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def read_whole(response: http.client.HTTPResponse) -> str:
    """The text of one whole answer."""
    said: str = json.load(response)["choices"][0]["message"]["content"]
    return said


def read_stream(response: http.client.HTTPResponse) -> str:
    """The text of an answer that comes in events; its end must have been told."""
    *events, end, nothing = response.read().decode().split("\n\n")
    if (end, nothing) != ("data: [DONE]", ""):
        raise NotAnsweredError(response.status, end.encode())
    return "".join(json.loads(event.removeprefix("data: "))["choices"][0]["delta"]["content"] for event in events)


def connect(server: Server, call: Call) -> http.client.HTTPConnection:
    """A connection for a call."""
    return http.client.HTTPConnection(server.host, call.port, timeout=SECONDS)


def send(connection: http.client.HTTPConnection, call: Call) -> str:
    """Ask over HTTP."""
    connection.request("POST", call.path, call.body, call.headers)
    with connection.getresponse() as response:
        if response.status != http.client.OK:
            raise NotAnsweredError(response.status, response.read())
        return call.read(response)


def over_grpc(client: tritonclient.grpc.InferenceServerClient, server: Server, question: Question) -> str:
    """Ask over gRPC."""
    inputs = triton_inputs(tritonclient.grpc, tensors(server, question))
    return text_of(client.infer(server.model, inputs, client_timeout=SECONDS))


def in_pieces(
    client: tritonclient.grpc.InferenceServerClient, server: Server, question: Question, *, most: float = math.inf
) -> str:
    """Ask over gRPC for pieces, and join them; who has heard enough after `most` of them goes away."""
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.start_stream(lambda result, error: heard.put(error or result), stream_timeout=SECONDS)
    inputs = triton_inputs(tritonclient.grpc, tensors(server, question))
    client.async_stream_infer(f"{server.model}{wire.STREAM_SUFFIX}", inputs, enable_empty_final_response=True)
    said: list[str] = []
    try:
        while len(said) < most:
            piece = heard.get(timeout=SECONDS)
            if isinstance(piece, Exception):
                raise piece
            if piece.get_response().parameters["triton_final_response"].bool_param:
                break
            said.append(text_of(piece))
    finally:
        client.stop_stream(cancel_requests=len(said) >= most)
    return "".join(said)


def grpc_client(server: Server) -> tritonclient.grpc.InferenceServerClient:
    """A client of the gRPC port that keeps its connection, as docs/how-to/ask-a-model.md says."""
    return tritonclient.grpc.InferenceServerClient(f"{server.host}:{server.grpc}", channel_args=[RETRY_BUFFER])


def text_of(result: Any) -> str:
    """The one answer of Triton's result."""
    ((said,),) = result.as_numpy(wire.OUTPUTS.name).tolist()
    text: str = said.decode()
    return text


def ask(server: Server, question: Question) -> dict[str, str]:
    """Ask over every port."""
    said = {}
    calls = {
        "http": triton_call(server, question),
        "openai": openai_call(server, question),
        "openai stream": openai_call(server, question, stream=True),
    }
    for protocol, call in calls.items():
        connection = connect(server, call)
        said[protocol] = send(connection, call)
        connection.close()
    with grpc_client(server) as client:
        said["grpc"] = over_grpc(client, server, question)
        said["grpc stream"] = in_pieces(client, server, question)
    return said


def main() -> None:
    """Run in a pod."""
    told = json.load(sys.stdin)
    server = Server(told["host"], told["model"], Family(told["family"]))
    questions = [Question(**each | {"medium": base64.b64decode(each["medium"])}) for each in told["questions"]]
    json.dump([ask(server, question) for question in questions], sys.stdout)


if __name__ == "__main__":
    main()
