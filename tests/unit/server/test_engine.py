from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from multimodal_api.engine import ENGINE_FORMAT, MANIFEST_NAME
from multimodal_api.errors import ProductError
from multimodal_api.overrides import Overrides
from multimodal_api.reasons import Reason
from multimodal_server.engine import HASHED_BYTES, open_engine
from support.tiny_engine import RECIPE, build_inputs, write_manifest
from support.tiny_tokenizer import SPECIALS, write_tokenizer


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """As much of an engine as the front reads, with weights that nobody loads."""
    folder = tmp_path / "engine"
    llm = folder / "model/llm"
    llm.mkdir(parents=True)
    write_tokenizer(llm / "tokenizer.json")
    (llm / "model.safetensors").write_bytes(bytes(HASHED_BYTES + 1))
    (folder / "model/recipe.json").write_text(RECIPE.model_dump_json(by_alias=True))
    write_manifest(folder, build_inputs())
    return folder


def test_a_whole_engine(engine: Path) -> None:
    served = open_engine(engine)
    assert served.recipe == RECIPE
    assert served.limits == build_inputs().limits
    # The model's own end, and the stop string that is a token; "STOP" is text.
    assert served.stop_token_ids == {2, SPECIALS.index("<extra_id_1>")}


def test_a_deployment_s_changes(engine: Path) -> None:
    overrides = Overrides.model_validate({"prompt": {"template": {"before": "now: "}, "stopStrings": ["<extra_id_0>"]}})
    served = open_engine(engine, overrides)
    assert served.recipe.template.before == "now: "
    assert served.stop_token_ids == {2, SPECIALS.index("<extra_id_0>")}


def edit_manifest(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def damage(engine: Path) -> None:
        path = engine / MANIFEST_NAME
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return damage


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(engine: Path) -> None:
        (engine / name).write_bytes(content)

    return damage


def flip(name: str) -> Callable[[Path], None]:
    def damage(engine: Path) -> None:
        path = engine / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return damage


@pytest.mark.parametrize(
    ("damage", "reason", "at", "words"),
    [
        (lambda engine: (engine / MANIFEST_NAME).unlink(), Reason.ENGINE_NOT_FOUND, "engine", ["manifest.json"]),
        (write(MANIFEST_NAME, b"{"), Reason.ENGINE_CORRUPT, MANIFEST_NAME, ["json"]),
        (write(MANIFEST_NAME, b"{}"), Reason.ENGINE_CORRUPT, MANIFEST_NAME, ["engineFormat"]),
        (
            edit_manifest(lambda manifest: manifest.update(engineFormat=99)),
            Reason.ENGINE_CORRUPT,
            MANIFEST_NAME,
            ["99", f"reads {ENGINE_FORMAT}"],
        ),
        (
            write("model/llm/model.safetensors", bytes(HASHED_BYTES)),
            Reason.ENGINE_CORRUPT,
            "model.safetensors",
            [str(HASHED_BYTES), str(HASHED_BYTES + 1)],
        ),
        (
            lambda engine: (engine / "model/llm/model.safetensors").unlink(),
            Reason.ENGINE_CORRUPT,
            "model.safetensors",
            ["No such file"],
        ),
        (flip("model/llm/tokenizer.json"), Reason.ENGINE_CORRUPT, "tokenizer.json", ["does not match"]),
        (flip("model/recipe.json"), Reason.ENGINE_CORRUPT, "recipe.json", ["does not match"]),
    ],
    ids=["no manifest", "no json", "empty", "other format", "truncated", "missing", "changed", "changed recipe"],
)
def test_an_engine_that_is_not_whole(
    engine: Path, damage: Callable[[Path], None], reason: Reason, at: str, words: list[str]
) -> None:
    damage(engine)
    with pytest.raises(ProductError) as caught:
        open_engine(engine)
    failure = caught.value.failure
    assert failure.reason is reason
    assert failure.at.endswith(at)
    assert all(word in failure.problem for word in words), failure.problem
    assert failure.remedy
