"""The tiny models of videos through the OpenAI port's reader and a real worker process: files in, seconds out.

What is asked was never shown in training; the answers are the tiny models' own list, its time tokens told in seconds by
the file's frame times as Pillow reads them. Only HTTP is left out: `tests/unit/server` has it.
"""

from __future__ import annotations

import base64
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageSequence
from tiny.judging import accepts_seconds

from multimodal_api.engine import Limits
from multimodal_api.families import Family, LlmType
from multimodal_api.worker_protocol import Ready
from multimodal_server.answers import Responder
from multimodal_server.chat import read_chat
from multimodal_server.engine import open_engine
from multimodal_server.metrics import Metrics
from multimodal_server.openai_schema import ChatRequest
from multimodal_server.worker_client import WorkerClient
from support import heldout, tiny_families
from support.answering import pieces
from support.clips import LOSSLESS, encode

pytestmark = pytest.mark.parity

START_SECONDS = 100.0
LIMITS = Limits(
    max_input_len=408, max_output_len=32, max_batch_size=8, max_multimodal_len=320, vision_max_batch_size=16
)
LLM_TYPES = {Family.VIDEO_NEVA: LlmType.GPTNEXT, Family.LITA: LlmType.LLAMA, Family.VITA: LlmType.LLAMA}


class Served(NamedTuple):
    """A family, and who answers for it."""

    family: Family
    responder: Responder

    def ask(self, data: bytes, question: str) -> str:
        url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
        parts = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": question}]
        body = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "temperature": 0}
        engine = self.responder.engine
        ready = self.responder.prepare(read_chat(ChatRequest.model_validate(body), engine.limits, engine.recipe, {}))
        return "".join(piece.text for piece in pieces(self.responder, ready))


@pytest.fixture(scope="module", params=LLM_TYPES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    family: Family = request.param
    engine = tiny_families.build(family, LLM_TYPES[family], LIMITS, tmp_path_factory.mktemp("store"))
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    worker = WorkerClient.start(engine, events.put)
    ready = events.get(timeout=START_SECONDS)
    assert isinstance(ready, Ready), ready
    yield Served(family, Responder(open_engine(engine), worker, Metrics()))
    worker.stop()


def frames(file: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The frames of a file."""
    with Image.open(file) as opened:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(opened)])


def test_every_held_out_question_is_answered_in_seconds(served: Served) -> None:
    cases = heldout.cases(served.family)
    with ThreadPoolExecutor(4) as threads:
        said = list(threads.map(lambda case: served.ask(case.medium, case.question), cases))
    wrong = [(case, answer) for case, answer in zip(cases, said, strict=True) if not case.accepts_seconds(answer)]
    assert wrong == []


def test_a_slower_video_of_the_same_frames_has_later_moments(served: Served) -> None:
    """In another container: 2 frames per second, and 4."""
    cases = heldout.cases(served.family)
    case = next(case for case in cases if "<t" in case.answer or served.family is Family.VIDEO_NEVA)
    shown = frames(case.file)
    for rate in (2, 4):
        said = served.ask(encode(shown, LOSSLESS["mkv"], rate=rate), case.question)
        assert accepts_seconds(case.answer, said, len(shown) / rate)
