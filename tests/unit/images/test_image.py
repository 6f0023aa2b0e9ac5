"""What names an image, and what its Containerfile may say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from multimodal_images import image
from multimodal_images.image import BUILDER, FRONT, OPERATOR, SERVER, TORCH, Image

ROOT = Path(__file__).parents[3]
ALL = (TORCH, FRONT, OPERATOR, BUILDER, SERVER)
SCRIPTS = {"images/install", "images/install-project"}
BASE = "0123456789abcdef"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of everything that goes into images."""
    for file in {name for each in ALL for name in (each.containerfile, *each.locks)} | SCRIPTS:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "wheel").write_bytes(b"the project")
    monkeypatch.setattr(image, "ROOT", tmp_path)
    return tmp_path


def tags(tree: Path, base: str = BASE) -> dict[str, str]:
    return {each.name: each.tag(base, tree / "wheel") for each in ALL}


@pytest.mark.parametrize(
    ("file", "renamed"),
    [
        ("locks/modeling.txt", {TORCH, FRONT, BUILDER, SERVER}),
        ("locks/front.txt", {FRONT, SERVER}),
        ("locks/operator.txt", {OPERATOR}),
        ("images/torch/Containerfile", {TORCH, FRONT, BUILDER, SERVER}),
        ("builder/Containerfile", {BUILDER}),
        ("images/install", set(ALL)),
        ("images/install-project", {OPERATOR, BUILDER, SERVER}),
        ("wheel", {OPERATOR, BUILDER, SERVER}),
    ],
)
def test_a_change_renames_what_it_goes_into(file: str, renamed: set[Image], tree: Path) -> None:
    before = tags(tree)
    with (tree / file).open("ab") as content:
        content.write(b"\n# changed\n")
    after = tags(tree)
    assert {name for name in before if before[name] != after[name]} == {each.name for each in renamed}


def test_another_base_renames_all(tree: Path) -> None:
    before, after = tags(tree), tags(tree, "fedcba9876543210")
    assert all(before[name] != after[name] for name in before)


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.name)
def test_a_containerfile_stands_on_what_it_is_given(each: Image) -> None:
    """One base by argument, no address of anything, and no file of the machine that builds."""
    text = (ROOT / each.containerfile).read_text()
    assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == ["${PARENT}"]
    assert "://" not in text
    assert not re.search(r"^(ADD|COPY)", text, re.MULTILINE)


@pytest.mark.parametrize("each", [OPERATOR, BUILDER, SERVER], ids=lambda each: each.name)
def test_a_published_image_runs_as_nobody_in_particular(each: Image) -> None:
    assert re.search(r"^USER 1000:1000$", (ROOT / each.containerfile).read_text(), re.MULTILINE)
