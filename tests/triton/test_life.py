"""How a server starts and ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tritonclient.grpc import InferenceServerClient, InferInput

from multimodal_api.engine import MANIFEST_NAME, MODEL_DIR, Manifest
from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_client import Client
from multimodal_recipes.recipe import RECIPE_NAME, Recipe
from multimodal_server import memory
from multimodal_server.answers import MAX_WAITING
from multimodal_server.keeper import MENDS
from multimodal_server.triton_calls import POLL_SECONDS
from support.tiny_engine import TOKENS_PER_IMAGE, build_inputs, write_manifest
from support.tiny_model import PADDED_VOCAB
from tests.triton.conftest import END_SECONDS, Server, picture, ready

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]

TEXT = "what is in this image?"
MEMORY = 128 * 2**20
"""How much all processes of a server may grow by that answers some questions."""


class Asking(threading.Thread):
    """One question, asked from another thread; its answer is long where the engine is endless."""

    def __init__(self, server: Server, seed: int, *, stream: bool = False) -> None:
        super().__init__(daemon=True)
        self._server, self._seed, self._stream = server, seed, stream
        self.answer: str | None = None
        self.error: ProductError | None = None

    def run(self) -> None:
        try:
            if self._stream:
                streaming = Client(self._server.grpc, "tiny", timeout=END_SECONDS)
                self.answer = "".join(streaming.stream(TEXT, picture(self._seed), max_output_len=200))
            else:
                self.answer = self._server.client.query(TEXT, picture(self._seed), max_output_len=200)[0]
        except ProductError as error:
            self.error = error


@pytest.fixture(name="endless", scope="module")
def _endless(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine that answers on and on: no token that it can choose is an end."""
    return changed(engine, tmp_path_factory.mktemp("endless"), without_ends)


def changed(engine: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    copy = folder / "engine"
    shutil.copytree(engine, copy)
    change(copy)
    return copy


def without_ends(copy: Path) -> None:
    path = copy / MODEL_DIR / RECIPE_NAME
    ends = {"eos_token_ids": (PADDED_VOCAB - 1,), "stop_strings": ()}
    recipe = Recipe.model_validate_json(path.read_bytes()).model_copy(update=ends)
    path.write_text(recipe.model_dump_json(by_alias=True))
    write_manifest(copy, Manifest.model_validate_json((copy / MANIFEST_NAME).read_bytes()).inputs)


def wait_until_all_run(server: Server, threads: list[Asking]) -> None:
    for thread in threads:
        thread.start()
    wait_until(server, "multimodal_running_requests", 2)


def wait_until(server: Server, metric: str, value: int) -> None:
    ends = time.monotonic() + END_SECONDS
    said = re.compile(rf"^{metric}(?:{{.*}})? {value}(?:\.0)?$", re.MULTILINE)
    while not said.search(server_page(server)):
        assert time.monotonic() < ends, f"{metric} never was {value}"


def server_page(server: Server) -> str:
    with urllib.request.urlopen(server.metrics, timeout=30) as response:  # noqa: S310 -- our own server
        page: str = response.read().decode()
        return page


def health(server: Server) -> int:
    try:
        with urllib.request.urlopen(f"{server.openai}/health", timeout=30) as response:  # noqa: S310 -- our own server
            status: int = response.status
    except urllib.error.HTTPError as error:
        status = error.code
    return status


def test_a_stop_finishes_what_was_accepted_and_exits_0(start: Callable[[Path], Server], endless: Path) -> None:
    server = ready(start(endless))
    threads = [Asking(server, seed) for seed in range(4)]  # two run, the others wait in the worker
    threads.append(Asking(server, 4, stream=True))
    wait_until_all_run(server, threads[:2])
    assert health(server) == HTTPStatus.OK
    server.process.send_signal(signal.SIGTERM)  # it leaves, and still takes what comes
    while health(server) == HTTPStatus.OK:
        time.sleep(0.01)
    for thread in threads[2:]:
        thread.start()
    wait_until(server, "multimodal_media_tokens_total", (1 + len(threads)) * TOKENS_PER_IMAGE)  # one is the warm-up's
    server.process.send_signal(signal.SIGTERM)  # whoever asks twice does not want to wait for others
    time.sleep(0.5)
    with pytest.raises(ProductError):
        server.client.query(TEXT, picture(9))
    assert server.process.wait(END_SECONDS) == 0
    for thread in threads:
        thread.join(END_SECONDS)
    assert [thread.error for thread in threads] == [None] * len(threads)
    assert all(thread.answer for thread in threads)
    assert server.last_words == ""
    assert '"message": "stopped"' in server.log


def test_a_full_queue_refuses_at_once_and_answers_the_rest(start: Callable[[Path], Server], endless: Path) -> None:
    server = ready(start(endless))
    wait_until_all_run(server, [Asking(server, seed) for seed in range(2)])

    def ask(_: int) -> str:
        try:
            server.client.query(TEXT, picture(0, 8, 8), max_output_len=1)
        except ProductError as error:
            return str(error)
        return "answered"

    os.kill(server.worker(), signal.SIGSTOP)  # no answer ends before the queue is full
    with ThreadPoolExecutor(MAX_WAITING + 10) as threads:
        asked = [threads.submit(ask, number) for number in range(MAX_WAITING + 10)]
        wait(asked, END_SECONDS, FIRST_COMPLETED)
        os.kill(server.worker(), signal.SIGCONT)
    ends = [each.result() for each in asked]
    refused = [end for end in ends if end != "answered"]
    assert ends.count("answered") >= MAX_WAITING
    assert refused, "the queue has no bound"
    assert all(f"{MAX_WAITING + 2} requests run or wait already; send" in end for end in refused), refused[0]


def test_whoever_ends_a_call_over_grpc_is_answered_no_further(start: Callable[[Path], Server], endless: Path) -> None:
    server = ready(start(endless))
    os.kill(server.worker(), signal.SIGSTOP)  # nothing ends by itself
    question, shown = InferInput("input_text", [1, 1], "BYTES"), InferInput("input_media", [1, 1, 8, 8, 3], "UINT8")
    question.set_data_from_numpy(np.array([[TEXT.encode()]], dtype=object))
    shown.set_data_from_numpy(picture(2, 8, 8)[None, None])
    with InferenceServerClient(server.grpc.removeprefix("grpc://")) as client:
        call = client.async_infer("tiny", [question, shown], lambda **_: None)
        time.sleep(4 * POLL_SECONDS)
        assert '"finish": "cancelled"' not in server.log
        call.cancel()
        ends = time.monotonic() + END_SECONDS
        while '"finish": "cancelled"' not in server.log:
            assert time.monotonic() < ends, "nobody noticed"
            time.sleep(0.05)
    os.kill(server.worker(), signal.SIGCONT)
    wait_until(server, "multimodal_running_requests", 0)
    assert "AttributeError" not in server.log, "Triton has no such code"


def test_the_worker_s_death_is_the_server_s(start: Callable[[Path], Server], endless: Path) -> None:
    server = ready(start(endless))
    threads = [Asking(server, seed) for seed in range(2)]
    wait_until_all_run(server, threads)
    os.kill(server.worker(), signal.SIGKILL)
    assert server.process.wait(END_SECONDS) == 1
    failure = json.loads(server.last_words)
    assert failure["reason"] == Reason.SERVER_FAILED
    assert "SIGKILL" in failure["problem"]
    assert "memory" in failure["remedy"]
    assert "SIGKILL" in server.log
    for thread in threads:
        thread.join(END_SECONDS)
        assert thread.answer is None
        assert thread.error is not None


def wait_for_another_triton(server: Server, before: list[int]) -> None:
    ends = time.monotonic() + END_SECONDS
    while server.triton() in ([], before):
        assert time.monotonic() < ends, "Triton is not started again"
        time.sleep(0.05)
    ready(server)


def ask_for_more_than_there_is(server: Server) -> None:
    """A document of a few bytes, whose shape is that of 8 GiB."""
    tensor = {"name": "max_output_len", "datatype": "INT64", "shape": [1, 2 * memory.ROOM_BYTES // 8], "data": [3]}
    with closing(http.client.HTTPConnection(server.http, timeout=END_SECONDS)) as connection:
        connection.request("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [tensor]}))
        with pytest.raises(OSError):  # noqa: PT011 -- cut off, in one of several ways
            connection.getresponse()


def stop_the_model_s_process(server: Server) -> None:
    """As on a machine that is busy beyond measure: it does not take what Triton gives it for longer than a second."""
    (stopped,) = server.triton("tiny_0_0")
    os.kill(stopped, signal.SIGSTOP)
    asking = Asking(server, 0)
    asking.start()
    asking.join(END_SECONDS)
    assert "not healthy" in str(asking.error)
    with suppress(ProcessLookupError):
        os.kill(stopped, signal.SIGCONT)


def end_triton(server: Server) -> None:
    for process in server.triton():
        os.kill(process, signal.SIGKILL)


def test_triton_is_started_again_beside_the_engine_a_few_times(start: Callable[[Path], Server], engine: Path) -> None:
    server = ready(start(engine))
    question: dict[str, Any] = {"max_output_len": 12}
    worker, wanted = server.worker(), server.client.query(TEXT, picture(1), **question)
    before_all = server.memory()
    for end in (ask_for_more_than_there_is, stop_the_model_s_process, end_triton):
        before = server.triton()
        end(server)
        wait_for_another_triton(server, before)
        assert server.client.query(TEXT, picture(1), **question) == wanted
        assert (
            "".join(Client(server.grpc, "tiny", timeout=END_SECONDS).stream(TEXT, picture(1), **question)) == wanted[0]
        )
        assert server.worker() == worker
    assert server.log.count("Triton is started again") == MENDS
    wait_until(server, "multimodal_triton_restarts_total", MENDS)
    assert server.memory() < before_all + MEMORY
    left = list(Path(tempfile.gettempdir(), f"multimodal-triton-{server.process.pid}").iterdir())
    assert len(left) == 1, "of those that ended nothing is left"
    end_triton(server)
    assert server.process.wait(END_SECONDS) == 1
    failure = json.loads(server.last_words)
    assert failure["reason"] == Reason.SERVER_FAILED
    assert "Triton's process ended" in failure["problem"]


def test_the_end_of_the_model_s_process_is_told_to_all_who_wait(start: Callable[[Path], Server], engine: Path) -> None:
    server = ready(start(engine))
    wanted, before = server.client.query(TEXT, picture(1), max_output_len=12), server.triton()
    os.kill(server.worker(), signal.SIGSTOP)
    threads = [Asking(server, seed) for seed in range(4)]
    for thread in threads:
        thread.start()
    wait_until(server, "multimodal_media_tokens_total", 6 * TOKENS_PER_IMAGE)  # the warm-up, the first, and these
    (ended,) = server.triton("tiny_0_0")
    os.kill(ended, signal.SIGKILL)
    for thread in threads:
        thread.join(END_SECONDS)
        assert thread.error is not None
    os.kill(server.worker(), signal.SIGCONT)
    wait_for_another_triton(server, before)
    assert server.client.query(TEXT, picture(1), max_output_len=12) == wanted
    wait_until(server, "multimodal_running_requests", 0)


def test_nothing_is_left_of_a_triton_that_ended_while_requests_ran(
    start: Callable[[Path], Server], engine: Path
) -> None:
    server = ready(start(engine))
    wanted, before = server.client.query(TEXT, picture(1), max_output_len=12), server.triton()
    old = f"multimodal-triton-{server.process.pid}/1/"
    assert server.triton(old)
    os.kill(server.worker(), signal.SIGSTOP)
    threads = [Asking(server, seed, stream=seed % 2 == 0) for seed in range(4)]
    for thread in threads:
        thread.start()
    wait_until(server, "multimodal_media_tokens_total", 6 * TOKENS_PER_IMAGE)  # the warm-up, the first, and these
    end_triton(server)
    for thread in threads:
        thread.join(END_SECONDS)
        assert thread.error is not None
    os.kill(server.worker(), signal.SIGCONT)
    wait_for_another_triton(server, before)
    assert server.client.query(TEXT, picture(1), max_output_len=12) == wanted
    wait_until(server, "multimodal_running_requests", 0)
    assert not server.triton(old)


def test_a_stop_while_the_engine_loads_exits_0(start: Callable[[Path], Server], engine: Path) -> None:
    server = start(engine)
    time.sleep(1.5)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(END_SECONDS) == 0


def without_weights(copy: Path) -> None:
    """The manifest is right, the weights of one tensor are not those of the model."""
    path = copy / "model/projector/model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"mm_projector.0.weight": torch.zeros(3, 3)}, path)
    write_manifest(copy, build_inputs())


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        (lambda copy: (copy / "manifest.json").unlink(), Reason.ENGINE_NOT_FOUND, ["manifest.json"]),
        (lambda copy: (copy / "model/llm/config.json").write_text("{}"), Reason.ENGINE_CORRUPT, ["config.json"]),
        (without_weights, Reason.ENGINE_CORRUPT, ["mm_projector.0.weight", "3"]),
    ],
    ids=["no manifest", "changed file", "wrong weights"],
)
def test_an_engine_that_cannot_be_served_ends_the_server_with_the_reason(
    start: Callable[[Path], Server],
    engine: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    reason: Reason,
    words: list[str],
) -> None:
    server = start(changed(engine, tmp_path, change))
    assert server.process.wait(END_SECONDS) == 1
    failure = json.loads(server.last_words)
    assert failure["reason"] == reason
    assert all(word in failure["at"] + failure["problem"] for word in words), failure


def test_a_port_that_is_taken_is_named(start: Callable[[Path], Server], engine: Path, server: Server) -> None:
    second = start(engine)
    second.process.kill()
    second.process.wait(END_SECONDS)
    arguments = list(second.process.args)  # type: ignore[arg-type]
    arguments[arguments.index("--http-port") + 1] = server.http.split(":")[1]
    with (second.folder / "log").open("wb") as log:
        again = subprocess.run(
            arguments, stdout=log, stderr=log, timeout=END_SECONDS, check=False, env=second.environment
        )
    assert again.returncode == 1
    failure = json.loads(second.last_words)
    assert failure["at"] == "--http-port"
    assert server.http.split(":")[1] in failure["problem"]
