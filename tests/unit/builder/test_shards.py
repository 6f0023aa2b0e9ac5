from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.huggingface import HuggingFaceFolder

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
MAP = {"a": FIRST, "b": FIRST, "c": SECOND}


def folder_of(path: Path, index: Any) -> HuggingFaceFolder:
    values = {name: np.full((2, 3), place, np.float32) for place, name in enumerate(MAP)}
    for shard in (FIRST, SECOND):
        save_file({name: value for name, value in values.items() if MAP[name] == shard}, path / shard)
    (path / INDEX).write_text(json.dumps(index))
    return HuggingFaceFolder(path)


def test_tensors_come_from_the_files_that_the_index_names(tmp_path: Path) -> None:
    source = folder_of(tmp_path, {"metadata": {}, "weight_map": MAP}).tensors()
    assert list(source.infos()) == ["a", "b", "c"]
    assert [source.read(name)[0, 0] for name in source.infos()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("index", "reason", "says"),
    [
        ({}, Reason.CHECKPOINT_UNREADABLE, "no weight_map"),
        ({"weight_map": ["a"]}, Reason.CHECKPOINT_UNREADABLE, "no weight_map"),
        ({"weight_map": MAP | {"c": 7}}, Reason.CHECKPOINT_UNREADABLE, "no weight_map"),
        ({"weight_map": MAP | {"d": SECOND}}, Reason.CHECKPOINT_UNREADABLE, "d: is not in"),
        ({"weight_map": {"a": FIRST, "c": SECOND}}, Reason.CHECKPOINT_UNREADABLE, "b: is in"),
        ({"weight_map": MAP | {"b": SECOND}}, Reason.CHECKPOINT_UNREADABLE, "b: is in"),
        ({"weight_map": MAP | {"c": "gone.safetensors"}}, Reason.CHECKPOINT_NOT_FOUND, "gone.safetensors"),
        ({"weight_map": MAP | {"c": "../secret"}}, Reason.CHECKPOINT_UNSAFE, "'../secret'"),
        ({"weight_map": MAP | {"c": "/etc/passwd"}}, Reason.CHECKPOINT_UNSAFE, "'/etc/passwd'"),
        ({"weight_map": MAP | {"c": ".."}}, Reason.CHECKPOINT_UNSAFE, "'..'"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, index: Any, reason: Reason, says: str) -> None:
    with pytest.raises(ProductError) as caught:
        folder_of(tmp_path, index).tensors()
    assert caught.value.failure.reason is reason
    assert says in str(caught.value.failure)
