"""The locks as they are in the tree, and what uv is told of the machine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from multimodal_locks import compiling, uv

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "locks").glob("*.txt"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==(\S+) \\$", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    return dict(PIN.findall((ROOT / "locks" / f"{name}.txt").read_text()))


def asked(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for directly, extras of its own resolved."""
    found = [Requirement(text) for text in PYPROJECT["dependencies"]]
    for extra in extras:
        for text in PYPROJECT["optional-dependencies"][extra]:
            requirement = Requirement(text)
            found += asked(*requirement.extras) if requirement.name == PYPROJECT["name"] else [requirement]
    return found


def test_every_lock_is_known() -> None:
    assert {file.stem for file in FILES} == {"uv", *(lock.name for lock in compiling.LOCKS)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_lock_has_no_address_and_no_option(file: Path) -> None:
    text = file.read_text()
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_pin_has_a_hash(file: Path) -> None:
    """A requirement starts at the margin; its hashes follow it, indented."""
    requirements = re.split(r"^(?=[a-zA-Z0-9])", file.read_text(), flags=re.MULTILINE)[1:]
    assert requirements
    for requirement in requirements:
        assert PIN.match(requirement), requirement.splitlines()[0]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", requirement), requirement.splitlines()[0]


@pytest.mark.parametrize(
    ("name", "extras"),
    [("operator", ["operator"]), ("modeling", ["builder", "worker"]), ("front", ["server"]), ("dev", ["client"])],
)
def test_a_lock_satisfies_pyproject(name: str, extras: list[str]) -> None:
    locked = pins(name)
    for requirement in asked(*extras):
        assert requirement.specifier.contains(locked[requirement.name.lower()]), requirement


def test_the_build_backend_is_the_one_that_pyproject_names() -> None:
    (required,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert Requirement(required).specifier.contains(pins("build")["hatchling"])


def test_images_and_tests_have_equal_versions() -> None:
    """What the tests saw is what runs; only numpy differs, since PyTriton needs numpy 1 and torch takes numpy 2."""
    dev = pins("dev")
    for name in ("build", "operator", "modeling", "front"):
        differing = {package for package, version in pins(name).items() if dev[package] != version}
        assert differing <= {"numpy"}, name


def test_servers_are_compared_over_one_torch_layer() -> None:
    """`transformers serve` runs with the versions that ours runs with."""
    dev, serving = pins("dev"), pins("serving")
    assert {package for package, version in serving.items() if dev.get(package, version) != version} == set()
    assert {"torch", "transformers", "tokenizers", "fastapi"} <= serving.keys()


def test_only_the_torch_layer_has_torch() -> None:
    assert "torch" in pins("modeling")
    assert "triton" not in pins("modeling")
    assert not {"torch", "transformers", "triton"} & {*pins("operator"), *pins("front")}


def test_pip_is_translated_for_uv() -> None:
    """The environment comes first in pip's list, and wins."""
    listed = r"""
:env:.index-url='https://one.example/simple'
global.cert='/etc/certificates.pem'
global.extra-index-url='\nhttps://two.example/simple\nhttps://three.example/simple'
global.index-url='https://four.example/simple'
global.timeout='60'
"""
    assert uv.translate(listed) == {
        "SSL_CERT_FILE": "/etc/certificates.pem",
        "UV_DEFAULT_INDEX": "https://one.example/simple",
        "UV_INDEX": "https://two.example/simple https://three.example/simple",
    }


def test_a_build_is_told_of_indexes_and_not_of_folders() -> None:
    text = uv.settings_file(
        {
            "UV_DEFAULT_INDEX": "https://one.example/simple",
            "UV_INDEX": "https://two.example",
            "UV_FIND_LINKS": "/wheels",
        }
    )
    assert tomllib.loads(text) == {
        "index": [
            {"url": "https://two.example", "default": False},
            {"url": "https://one.example/simple", "default": True},
        ]
    }
    assert tomllib.loads(uv.settings_file({})) == {}
