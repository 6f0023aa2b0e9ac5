from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kubernetes.config import kube_config
from PIL import Image

from multimodal_client import main as command
from multimodal_client.status import render
from tests.unit.client.conftest import KServe

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["mmd", *arguments])
    return command.main()


@pytest.fixture
def png(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    return str(path)


LONG = ["--url", "--model_name", "--model_type", "--input_text", "--input_media", "--batch_size", "--max_output_len"]
SHORT = ["-u", "-mn", "-mt", "-int", "-im", "-bs", "-mol"]


@pytest.mark.parametrize("flags", [LONG, SHORT], ids=["long", "short"])
def test_query_with_upstream_s_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: KServe, png: str, flags: list[str]
) -> None:
    server.answers = [b"one", b"two"]
    values = [server.address, "m", "neva", "what?", png, "2", "5"]
    words = [word for pair in zip(flags, values, strict=True) for word in pair]
    assert run(monkeypatch, "query", *words) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    tensors = server.asked[0].tensors
    assert [tensors[name].item() for name in ("batch_size", "max_output_len")] == [2, 5]


def test_the_script_s_own_default_length(monkeypatch: pytest.MonkeyPatch, server: KServe, png: str) -> None:
    assert run(monkeypatch, "query", "-u", server.address, "-mn", "m", "-int", "what?", "-im", png) == 0
    assert server.asked[0].tensors["max_output_len"].item() == 128


def test_an_error_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: KServe, png: str
) -> None:
    server.status, server.error = 400, "RequestRefused: input_text: is empty; send a question"
    assert run(monkeypatch, "query", "-u", server.address, "-mn", "m", "-int", "", "-im", png) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: input_text: is empty; send a question\n"


def test_an_interrupted_question_is_no_stack_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: KServe, png: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.Client, "query", interrupted)
    assert run(monkeypatch, "query", "-u", server.address, "-mn", "m", "-int", "?", "-im", png) == 130
    assert capsys.readouterr().err == ""


def test_no_cluster(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    # The library looks at KUBECONFIG while it is imported, which a person's shell may have set.
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(monkeypatch, "status", "-n", "x") == 1
    assert "no cluster can be reached" in capsys.readouterr().err


def resource(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "demo", "name": "neva", "creationTimestamp": "2026-01-02T01:04:05Z"},
        "spec": {"model": {"type": "neva"}},
        "status": status,
    }


def test_the_table() -> None:
    ready = {"type": "Ready", "status": "True", "reason": "AllIsWell", "message": "serving"}
    served = resource(
        phase="Ready", engine={"key": "0123456789abcdef"}, conditions=[ready], url="http://neva.demo.svc:8000"
    )
    assert render([served, resource()], details=False, now=NOW).splitlines() == [
        "NAMESPACE  NAME  PHASE  READY  MODEL  ENGINE    AGE",
        "demo       neva  Ready  True   neva   01234567  2h",
        "demo       neva  -      -      neva   -         2h",
    ]
    details = render([served], details=True, now=NOW)
    assert "Ready      True    AllIsWell  serving" in details
    assert "http://neva.demo.svc:8000" in details


BUILDER = """#!/bin/sh
echo "$@"
exit 3
"""


def mmd_inspect(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "multimodal_client.main", "inspect", *arguments]
    env = os.environ | {"PATH": path}
    return subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "arguments", [["/models/x.nemo"], ["--json", "/models/x.nemo", "--num-gpus", "2"], ["--help"], []]
)
def test_inspection_is_the_builder_s(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "multimodal-builder").write_text(BUILDER)
    (tmp_path / "multimodal-builder").chmod(0o755)
    done = mmd_inspect(str(tmp_path), *arguments)
    assert (done.returncode, done.stdout.split()) == (3, ["inspect", *arguments])


def test_without_the_builder_inspection_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert run(monkeypatch, "inspect", "x.nemo") == 1
    assert "docker run" in capsys.readouterr().err
