"""The command as a Job runs it: exit codes, the termination message, the progress report, SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from multimodal_api.build import TERMINATION_LIMIT, BuildReport, ExitCode, Outcome, Progress, Stage
from multimodal_api.engine import Backend, BuildInputs, Dtype, Limits, Quantization, SourceIdentity
from multimodal_api.errors import Failure, ProductError
from multimodal_api.families import Family, LlmType
from multimodal_api.reasons import Reason
from multimodal_builder.backends.registry import BACKENDS
from multimodal_builder.main import main
from multimodal_builder.progress import Tracker, serve_progress
from support.archives import CLASSIC, Archive

if TYPE_CHECKING:
    from pathlib import Path


def inputs(**changes: object) -> BuildInputs:
    whole: dict[str, Any] = {
        "family": Family.NEVA,
        "llm_type": LlmType.LLAMA,
        "visual_checkpoint": SourceIdentity(kind="pvc", location="models", path="model.nemo"),
        "num_gpus": 0,
        "dtype": Dtype.FLOAT32,
        "backend": Backend.TORCH,
        "limits": Limits(vision_max_batch_size=1),
    }
    return BuildInputs(**(whole | changes))


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "engines").mkdir()
    wanted = inputs()
    return [
        *("build", "--inputs", wanted.model_dump_json(by_alias=True), "--key", wanted.key()),
        *("--visual-checkpoint", str(Archive.read(CLASSIC).write(tmp_path)), "--store", str(tmp_path / "engines")),
        *("--progress-port", "0", "--termination-log", str(tmp_path / "termination-log")),
    ]


def report(tmp_path: Path) -> BuildReport:
    message = (tmp_path / "termination-log").read_bytes()
    assert len(message) <= TERMINATION_LIMIT
    return BuildReport.model_validate_json(message)


def test_a_good_checkpoint_is_inspected(tmp_path: Path, arguments: list[str]) -> None:
    assert main([*arguments, "--stop-after", "inspect"]) == ExitCode.OK
    told = report(tmp_path)
    assert (told.outcome, told.failure) == (Outcome.INSPECTED, None)
    assert told.seconds.keys() == {"inspect"}


def test_a_bad_checkpoint_is_refused_in_the_termination_message(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "model.nemo").write_bytes(b"junk")
    assert main(arguments) == ExitCode.REFUSED
    told = report(tmp_path)
    assert (told.outcome, told.stage) == (Outcome.FAILED, Stage.INSPECT)
    assert told.failure is not None
    assert told.failure.reason is Reason.CHECKPOINT_UNREADABLE
    assert told.failure.at == "model.nemo"


def test_a_missing_checkpoint_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "model.nemo").unlink()
    assert main(arguments) == ExitCode.REFUSED
    failure = report(tmp_path).failure
    assert failure is not None
    assert failure.reason is Reason.CHECKPOINT_NOT_FOUND


def test_an_unexpected_error_may_be_tried_again(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("x" * 10_000)

    monkeypatch.setattr("multimodal_builder.main.run_build", broken)
    assert main(arguments) == ExitCode.RETRY
    failure = report(tmp_path).failure
    assert failure is not None
    assert failure.reason is Reason.BUILD_FAILED
    assert "RuntimeError: xxx" in failure.problem


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (OSError(28, "No space left on device"), Reason.DISK_FULL, ExitCode.RETRY),
        (MemoryError(), Reason.OUT_OF_MEMORY, ExitCode.RETRY),
        (
            ProductError(Reason.VERIFICATION_FAILED, at="é" * 5000, problem="ü" * 5000, remedy="y" * 5000),
            Reason.VERIFICATION_FAILED,
            ExitCode.REFUSED,
        ),
    ],
)
def test_every_error_has_its_reason_and_fits(
    tmp_path: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    reason: Reason,
    code: ExitCode,
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("multimodal_builder.main.run_build", broken)
    assert main(arguments) == code
    failure = report(tmp_path).failure
    assert failure is not None
    assert failure.reason is reason


def test_sigterm_ends_the_build_and_says_so(tmp_path: Path, arguments: list[str]) -> None:
    """The real program, ended while it imports torch: the next attempt finds the conversion finished."""
    store = tmp_path / "engines"
    key = inputs().key()
    with subprocess.Popen([sys.executable, "-m", "multimodal_builder.main", *arguments]) as program:
        deadline = time.monotonic() + 60
        while not (store / ".partial" / key / "convert.json").exists():
            assert time.monotonic() < deadline
            assert program.poll() is None
            time.sleep(0.01)
        program.send_signal(signal.SIGTERM)
        assert program.wait(60) == ExitCode.RETRY
    told = report(tmp_path)
    assert told.failure is not None
    assert "SIGTERM" in told.failure.problem
    assert not (store / key).exists()


def test_inspect_prints_json_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(Archive.read(CLASSIC).write(tmp_path))
    assert main(["inspect", path, "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["tokensPerImage"] == 36
    assert main(["inspect", path]) == ExitCode.OK
    assert "48 pixels, 36 tokens" in capsys.readouterr().out
    assert main(["inspect", path, "--llm-type", "gemma"]) == ExitCode.REFUSED
    assert "problem 1" in capsys.readouterr().out


def test_inspection_needs_no_torch(tmp_path: Path) -> None:
    """Its Job must take a second: no import of anything large."""
    path = Archive.read(CLASSIC).write(tmp_path)
    code = (
        "import sys; from multimodal_builder.main import main; "
        f"assert main(['convert', {str(path)!r}, {str(tmp_path / 'out')!r}]) == 0; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_convert_makes_its_folder_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Archive.read(CLASSIC).write(tmp_path)
    out = tmp_path / "canonical"
    assert main(["convert", str(path), str(out), "--dtype", "bfloat16"]) == ExitCode.OK
    assert json.loads((out / "llm/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert main(["convert", str(path), str(out)]) == ExitCode.REFUSED
    assert "exists already" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-200_000])
    assert main(["convert", str(path), str(tmp_path / "other")]) == ExitCode.REFUSED
    assert not (tmp_path / "other").exists()


def test_progress_is_answered_over_http() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tracker = Tracker()
    with serve_progress(tracker, port), tracker.during(Stage.CONVERT, total=1000):
        tracker.advance(250)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=10) as answer:
            found = Progress.model_validate_json(answer.read())
        assert found == Progress(stage=Stage.CONVERT, percent=25, done_bytes=250, total_bytes=1000)
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/other", timeout=10)


def test_a_port_that_is_taken_stops_no_build() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with serve_progress(Tracker(), taken.getsockname()[1]):
            pass


@pytest.mark.parametrize(("backend", "module"), [(Backend.VLLM, "vllm"), (Backend.TENSORRT_LLM, "tensorrt_llm")])
def test_a_backend_without_its_library_refuses_by_name(
    tmp_path: Path, arguments: list[str], backend: Backend, module: str
) -> None:
    wanted = inputs(backend=backend, num_gpus=1)
    arguments[2], arguments[4] = wanted.model_dump_json(by_alias=True), wanted.key()
    assert main([*arguments, "--stop-after", "inspect"]) == ExitCode.REFUSED
    failure = report(tmp_path).failure
    assert failure is not None
    assert failure.reason is Reason.BACKEND_UNAVAILABLE
    assert module in failure.problem
    assert backend in failure.problem


@pytest.mark.parametrize("backend", [Backend.TORCH, Backend.VLLM])
def test_quantised_weights_are_refused(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multimodal_builder.backends.base.find_spec", lambda _: object())
    with pytest.raises(ProductError) as caught:
        BACKENDS[backend].check(inputs(backend=backend, num_gpus=1, quantization=Quantization.FP8))
    assert caught.value.failure.reason is Reason.NOT_IMPLEMENTED


def test_tensorrt_engines_are_refused_even_with_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multimodal_builder.backends.base.find_spec", lambda _: object())
    with pytest.raises(ProductError) as caught:
        BACKENDS[Backend.TENSORRT_LLM].check(inputs(backend=Backend.TENSORRT_LLM, num_gpus=1))
    assert caught.value.failure.reason is Reason.NOT_IMPLEMENTED


def test_a_failure_survives_its_journey() -> None:
    failure = Failure(reason=Reason.DISK_FULL, at="a", problem="b", remedy="c")
    assert Failure.model_validate_json(failure.model_dump_json(by_alias=True)) == failure
    assert os.linesep not in str(failure)
