"""Every family, from the sample in the tree to right answers about held-out media through its Service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny.answering import accepts

from support.product import Resource, load_files

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny"
SAMPLES = {
    path.stem.removesuffix("-cpu"): yaml.safe_load(path.read_text())
    for path in sorted((ROOT / "examples" / "resources").glob("*-cpu.yaml"))
}
ASKED = 8
"""Questions of each family: all of them are asked in tests/parity, from the same engine's files."""


@pytest.fixture(name="checkpoints", scope="module")
def _checkpoints(namespace: str) -> None:
    """Have the claim hold what the archives name beside themselves, as the samples' comments say."""
    files = list(TINY.rglob("*.nemo"))
    folders = [TINY / "siglip", TINY / "neva" / "clip", TINY / "vita" / "tokenizer"]
    files += [path for folder in folders for path in folder.iterdir() if path.is_file()]
    load_files(namespace, TINY, [path.relative_to(TINY).as_posix() for path in files])


@pytest.mark.usefixtures("checkpoints")
@pytest.mark.parametrize("family", [family for family in SAMPLES if family != "neva"])
def test_a_sample_answers_about_what_no_training_showed(
    family: str, resource: Callable[[str], Resource], namespace: str, store: dict[str, str]
) -> None:
    spec = SAMPLES[family]["spec"] | {"engineStore": store}
    deployment = resource(family).create(**spec)
    deployment.until_ready()
    heldout = TINY / family.replace("-", "_") / "heldout"
    cases: list[dict[str, Any]] = json.loads((heldout / "heldout.json").read_text())
    with forwarded(namespace, family) as address:
        said = [(case, ask(address, family, heldout, case)) for case in cases[:ASKED]]
    assert [case for case, answer in said if not accepts(case["answer"], answer)] == [], said
    deployment.delete(wait=False)


@contextmanager
def forwarded(namespace: str, name: str) -> Iterator[str]:
    """Give a local address of a Service's Triton port."""
    command = ["kubectl", "port-forward", "-n", namespace, f"svc/{name}", ":http"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            assert found, line
            yield found[0]
        finally:
            process.kill()


def ask(address: str, family: str, folder: Path, case: dict[str, Any]) -> str:
    """Ask as a person would, with the flags of NeMo's query script."""
    medium = folder / next(case[kind] for kind in ("picture", "video", "sound") if kind in case)
    command = [
        *(sys.executable, "-m", "multimodal_client.main", "query", "--url", f"http://{address}"),
        *("--model_name", family, "--model_type", family, "--max_output_len", "32"),
        *("--input_text", case["question"], "--input_media", str(medium)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
