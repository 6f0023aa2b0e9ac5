"""Fetching from the Hub: what is chosen, what is refused, and that a silent Hub is asked again."""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING

import pytest

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints import hub
from multimodal_builder.checkpoints.hub import Hub, choose, is_repository
from support.fake_hub import FakeHub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AT = "model_config.yaml: mm_cfg.vision_encoder.from_pretrained"
FILES = {
    "config.json": b'{"model_type": "clip"}',
    "preprocessor_config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same weights, pickled",
    "modeling_evil.py": b"raise SystemExit",
    "README.md": b"words",
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(hub, "PAUSE_SECONDS", 0.01)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub(
        {"owner/tower": FILES, "owner/archive": {"model.nemo": b"tar"}, "owner/words": {"a.md": b""}}
    ).running() as it:
        yield it


def test_one_form_of_the_weights_is_fetched_and_no_code(fake: FakeHub, tmp_path: Path) -> None:
    folder = Hub(tmp_path, endpoint=fake.url).fetch("owner/tower", at=AT)
    fetched = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert fetched == {name: FILES[name] for name in ("config.json", "preprocessor_config.json", "model.safetensors")}


def test_a_second_fetch_downloads_nothing_again(fake: FakeHub, tmp_path: Path) -> None:
    Hub(tmp_path, endpoint=fake.url).fetch("owner/tower", at=AT)
    fake.asked.clear()
    Hub(tmp_path, endpoint=fake.url).fetch("owner/tower", at=AT)
    assert not [line for line in fake.asked if line.startswith("GET /owner")]


def test_an_archive_is_given_as_a_file(fake: FakeHub, tmp_path: Path) -> None:
    assert Hub(tmp_path, endpoint=fake.url).fetch("owner/archive", at=AT).read_bytes() == b"tar"


def test_a_silent_hub_is_asked_again(fake: FakeHub, tmp_path: Path) -> None:
    fake.failures = 2
    assert (Hub(tmp_path, endpoint=fake.url).fetch("owner/tower", at=AT) / "config.json").is_file()


@pytest.mark.parametrize(
    ("repository", "remedy"),
    [("owner/nothing", "correct the name"), ("owner/words", "name one that does")],
)
def test_what_is_not_there_is_told_with_its_place(fake: FakeHub, tmp_path: Path, repository: str, remedy: str) -> None:
    with pytest.raises(ProductError) as caught:
        Hub(tmp_path, endpoint=fake.url).fetch(repository, at=AT)
    failure = caught.value.failure
    assert failure.reason is Reason.CHECKPOINT_NOT_FOUND
    assert failure.at == f"{AT}: {repository}@main"
    assert remedy in failure.remedy


def test_a_gated_repository_asks_for_the_secret_and_takes_it(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.token = "hf_test"  # noqa: S105 -- of the fake
    with pytest.raises(ProductError, match="hfTokenSecret"):
        Hub(tmp_path, endpoint=fake.url).fetch("owner/tower", at=AT)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    assert (Hub(tmp_path, endpoint=fake.url).fetch("owner/tower", at=AT) / "config.json").is_file()


def test_a_hub_that_is_not_there_ends_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PAUSE_SECONDS", 0.01)
    with pytest.raises(ProductError, match="does not answer") as caught:
        Hub(tmp_path, endpoint="http://127.0.0.1:9").fetch("owner/tower", at=AT)
    assert "copy the model to the volume" in caught.value.failure.remedy


def test_a_full_disk_is_told_before_anything_is_fetched(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 -- as shutil's
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: usage(1, 1, 1))
    with pytest.raises(ProductError) as caught:
        Hub(tmp_path, endpoint=fake.url).fetch("owner/tower", at=AT)
    assert caught.value.failure.reason is Reason.DISK_FULL
    assert not [line for line in fake.asked if line.startswith("GET /owner")]


def test_names_that_lead_outside_are_refused(fake: FakeHub, tmp_path: Path) -> None:
    fake.repositories = {"owner/evil": {"model.safetensors": b"", "../../evil.json": b""}}
    with pytest.raises(ProductError):
        Hub(tmp_path / "in", endpoint=fake.url).fetch("owner/evil", at=AT)
    assert not (tmp_path / "evil.json").exists()


def test_weights_are_chosen_per_folder() -> None:
    names = ["config.json", "llm/model.safetensors", "llm/pytorch_model.bin", "tower/pytorch_model.bin", "x.py"]
    assert choose(names) == ["config.json", "llm/model.safetensors", "tower/pytorch_model.bin"]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("openai/clip-vit-large-patch14-336", True),
        ("clip", False),
        ("/models/clip", False),
        ("a/b/c", False),
        ("../clip", False),
        ("models/..", False),
        ("openai/", False),
    ],
)
def test_repositories_are_told_from_paths(name: str, is_one: bool) -> None:  # noqa: FBT001 -- a table
    assert is_repository(name) is is_one
