"""The README's first command, on a cluster that knows nothing of it, and the six families that it leaves serving."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_api import labels
from multimodal_api.families import Family
from support import heldout
from support.platform import attempt, get
from support.product import in_client, send_programs

ROOT = Path(__file__).parents[2]
NAMESPACE = "multimodal-demo"
PROTOCOLS = ("http", "grpc", "grpc stream", "openai", "openai stream")
ASKED = 8
"""Questions of each family: all of them are asked in tests/parity, from the same engine's files."""
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(name="demo", scope="module")
def _demo() -> Iterator[subprocess.CompletedProcess[str]]:
    for namespace in (NAMESPACE, "multimodal-system"):
        attempt("delete", "namespace", namespace, "--ignore-not-found", "--timeout=180s", seconds=190)
    done = subprocess.run([sys.executable, ROOT / "demo"], check=False, capture_output=True, text=True, timeout=600)
    yield done
    # Six servers are no company for the tests that follow.
    attempt("delete", "-n", NAMESPACE, labels.SHORT_NAME, "--all", "--wait=false")


def test_the_demo_works_where_it_never_ran(demo: subprocess.CompletedProcess[str]) -> None:
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "answers are right" in demo.stdout
    page = (ROOT / "out" / "demo.html").read_text()
    assert page.count("<section>") == len(Family)


@pytest.fixture(name="asking", scope="module")
def _asking(demo: subprocess.CompletedProcess[str]) -> None:
    assert demo.returncode == 0, "the demo failed, so there is nobody to ask"
    send_programs(NAMESPACE)


@pytest.mark.usefixtures("asking")
@pytest.mark.parametrize("family", Family)
def test_a_sample_answers_over_every_port_about_what_no_training_showed(family: Family) -> None:
    resource = get("-n", NAMESPACE, labels.SHORT_NAME, family)
    assert resource["status"]["phase"] == "Ready"
    cases = heldout.cases(family)[:ASKED]
    questions = [
        {"text": case.question, "medium": base64.b64encode(case.medium).decode(), "kind": case.kind} for case in cases
    ]
    told = {"host": family, "model": family, "family": family, "questions": questions}
    done = subprocess.run(
        in_client(NAMESPACE, "support.asking"),
        input=json.dumps(told),
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    judges = {
        protocol: heldout.Asked.accepts_seconds if protocol.startswith("openai") else heldout.Asked.accepts
        for protocol in PROTOCOLS
    }
    wrong = [
        (case.question, case.answer, protocol, answers[protocol])
        for case, answers in zip(cases, said, strict=True)
        for protocol, is_right in judges.items()
        if not is_right(case, answers[protocol])
    ]
    assert wrong == []
