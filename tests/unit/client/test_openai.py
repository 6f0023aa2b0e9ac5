"""Questions over OpenAI's API: a server of the other side checks bodies with the schema of this project's own port."""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
import wave
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from multimodal_api.errors import ProductError
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from multimodal_client import Client
from multimodal_client import main as command
from multimodal_recipes.waves import Wave
from multimodal_server.openai_schema import AudioPart, ChatRequest, ImagePart, VideoPart
from support.clips import LOSSLESS, animate, encode, noise

VIDEO = noise(3)


@dataclass
class Chat:
    """What the other side was asked, and what it says."""

    address: str = ""
    asked: list[ChatRequest] = field(default_factory=list)
    probes: list[str] = field(default_factory=list)
    pieces: list[str] = field(default_factory=lambda: ["a ", "red ", "circle"])
    status: int = 200
    error: dict[str, Any] | None = None
    hang: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    """Of a class made for one test, which has its state."""

    state: ClassVar[Chat]

    def do_GET(self) -> None:
        self.state.probes.append(self.path)
        self.answer({})

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        asked = ChatRequest.model_validate_json(self.rfile.read(int(self.headers["Content-Length"])))
        self.state.asked.append(asked)
        if self.state.status != 200:
            self.answer({"error": self.state.error})
        elif asked.stream:
            self.stream()
        else:
            message = {"role": "assistant", "content": "".join(self.state.pieces)}
            self.answer({"choices": [{"index": index, "message": message} for index in range(asked.n or 1)]})

    def answer(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(self.state.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self) -> None:
        self.send_response(200)
        self.end_headers()
        deltas: list[dict[str, str]] = [{"role": "assistant"}, *({"content": piece} for piece in self.state.pieces)]
        for number, delta in enumerate(deltas):
            self.event({"choices": [{"index": 0, "delta": delta}]})
            if number == 1:
                self.state.hang.wait(10)
        if self.state.error is None:
            self.event({"choices": [], "usage": {}})
            self.wfile.write(b"data: [DONE]\n\n")
        else:
            self.event({"error": self.state.error})

    def event(self, body: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def chat() -> Iterator[Chat]:
    state = Chat()
    state.hang.set()
    listening = ThreadingHTTPServer(("127.0.0.1", 0), type("One", (Handler,), {"state": state}))
    threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
    state.address = f"127.0.0.1:{listening.server_address[1]}/v1"
    yield state
    listening.shutdown()
    listening.server_close()


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(VIDEO[0]).save(stream, "PNG")
    return stream.getvalue()


def wav() -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", "NONE"))
        file.writeframes(struct.pack("<4h", 0, 1, 2, 3))
    return stream.getvalue()


FILES = {
    Family.NEVA: (png(), "image/png"),
    Family.VILA: (animate(VIDEO[:1], "WEBP", lossless=True), "image/webp"),
    Family.VIDEO_NEVA: (encode(VIDEO, LOSSLESS["mp4"]), "video/mp4"),
    Family.LITA: (encode(VIDEO, LOSSLESS["mkv"]), "video/x-matroska"),
    Family.VITA: (animate(VIDEO, "GIF"), "image/gif"),
    Family.SALM: (wav(), "wav"),
}


@pytest.mark.parametrize("family", Family)
def test_every_family_s_file_is_sent_as_it_is(chat: Chat, tmp_path: Path, family: Family) -> None:
    content, kind = FILES[family]
    path = tmp_path / "medium"
    path.write_bytes(content)
    client = Client(chat.address, "m", family=family)
    client.wait_ready(5)
    assert client.query("what is it?", path) == ["a red circle"]
    assert chat.probes == ["/v1/models/m"]
    (asked,) = chat.asked
    (message,) = asked.messages
    medium, text = message.content
    assert text.text == "what is it?"  # type: ignore[union-attr]
    if isinstance(medium, AudioPart):
        assert (base64.b64decode(medium.input_audio.data), medium.input_audio.format) == (content, kind)
        return
    assert isinstance(medium, ImagePart if family in {Family.NEVA, Family.VILA} else VideoPart)
    url = medium.image_url.url if isinstance(medium, ImagePart) else medium.video_url.url
    assert url == f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_what_is_left_out_means_what_it_means_over_triton(chat: Chat) -> None:
    Client(chat.address, "m").query("?", png())
    (asked,) = chat.asked
    assert (asked.model, asked.top_k, asked.max_completion_tokens) == ("m", 1, 30)
    assert (asked.top_p, asked.temperature, asked.n, asked.stream) == (None, None, None, False)


def test_numbers(chat: Chat) -> None:
    client = Client(chat.address, "m")
    numbers: dict[str, Any] = {"max_output_len": 5, "top_k": 7, "top_p": 0.25, "temperature": 0.0}
    same: dict[str, Any] = {"repetition_penalty": 1.0, "num_beams": 1, "lora_uids": ["-1"]}
    assert client.query("?", png(), batch_size=2, **numbers, **same) == ["a red circle"] * 2
    asked = chat.asked[0]
    assert (asked.max_completion_tokens, asked.top_k, asked.top_p, asked.temperature, asked.n) == (5, 7, 0.25, 0, 2)
    client.query("?", png(), top_p=0.0)
    assert chat.asked[1].top_p is None, "0 is no bound over Triton"


@pytest.mark.parametrize(
    ("medium", "changed", "words"),
    [
        (png(), {"num_beams": 2}, "num_beams: is 2, and OpenAI's API has no such field"),
        (png(), {"repetition_penalty": 1.5}, "repetition_penalty: is 1.5"),
        (png(), {"lora_uids": ["3"]}, "lora_uids: is .*3"),
        (VIDEO[0], {}, "is an array, and OpenAI's API takes files"),
        (Wave(np.zeros((4, 1), np.float32), 16000), {}, "is an array"),
        ("/nowhere", {}, "cannot be read"),
    ],
)
def test_what_the_api_does_not_have_is_never_sent(chat: Chat, medium: Any, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ProductError, match=words):
        Client(chat.address, "m").query("?", medium, **changed)
    assert chat.asked == []


def test_pieces_come_while_the_answer_is_not_there_yet(chat: Chat) -> None:
    chat.hang.clear()
    given = Client(chat.address, "m").stream("?", png())
    begun = next(given) + next(given)
    assert begun == "a "
    chat.hang.set()
    assert begun + "".join(given) == "a red circle"


def test_an_error_in_the_stream(chat: Chat) -> None:
    chat.error = {"code": "OutOfGpuMemory", "message": "here: no room; make room"}
    given = Client(chat.address, "m").stream("?", png())
    with pytest.raises(ProductError, match="here: no room; make room") as caught:
        list(given)
    assert caught.value.failure.reason is Reason.OUT_OF_GPU_MEMORY


@pytest.mark.parametrize("method", ["query", "stream"])
def test_a_refusal_comes_back_as_the_server_made_it(chat: Chat, method: str) -> None:
    chat.status, chat.error = 400, {"code": "RequestRefused", "message": "messages: is empty; send a question"}
    with pytest.raises(ProductError) as caught:
        list(getattr(Client(chat.address, "m"), method)("", png()))
    assert caught.value.failure.at == "messages"


def test_another_server_s_error_is_shown(chat: Chat) -> None:
    chat.status, chat.error = 503, {"message": "later", "code": 503}
    with pytest.raises(ProductError, match=r"answers 503: .*later") as caught:
        Client(chat.address, "m").query("?", png())
    assert caught.value.failure.reason is Reason.SERVER_FAILED


def test_a_slow_stream_ends_in_a_deadline(chat: Chat) -> None:
    chat.hang.clear()
    with pytest.raises(ProductError) as caught:
        list(Client(chat.address, "m", timeout=0.2).stream("?", png()))
    assert caught.value.failure.reason is Reason.DEADLINE_EXCEEDED
    chat.hang.set()


def test_the_command_prints_pieces(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], chat: Chat, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes(png())
    words = ["-u", chat.address, "-mn", "m", "-int", "?", "-im", str(tmp_path / "x.png"), "--stream"]
    monkeypatch.setattr("sys.argv", ["mmd", "query", *words])
    assert command.main() == 0
    assert capsys.readouterr().out == "a red circle\n"
    assert chat.asked[0].stream
    monkeypatch.setattr("sys.argv", ["mmd", "query", *words, "-bs", "2"])
    assert command.main() == 1
    assert capsys.readouterr().err.startswith("error: --stream: is given with --batch_size 2")
