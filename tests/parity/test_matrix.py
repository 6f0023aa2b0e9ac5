"""The whole matrix: every kind of language model and every family, in every form that NeMo wrote it in.

Each is a model of transformers with random weights. What the product makes of a checkpoint has to give the same logits
in float32, near and far; which cells upstream does not have, and why, says `support.upstream`.
"""

from __future__ import annotations

import shutil
from functools import cache
from typing import TYPE_CHECKING

import pytest

from support import upstream
from support.archives import CLIP, Archive
from support.language_cases import (
    CASES,
    TOLERANCE,
    archive_of,
    convert,
    difference,
    load,
    make_reference,
    projector_state,
    scores,
)
from support.megatron_writer import write_state

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

pytestmark = pytest.mark.parity


@cache
def reference(model: str) -> tuple[PreTrainedModel, Archive, Tensor]:
    """A model of transformers, NeMo's configuration of it, and its scores."""
    case = CASES[upstream.MODELS[model]]
    made = make_reference(case.config)
    return made, archive_of(case), scores(made)


@pytest.mark.parametrize(
    ("model", "form"), [(model, form) for model in upstream.MODELS for form in upstream.forms_of(model)]
)
def test_every_language_model_scores_the_same_from_every_form(tmp_path: Path, model: str, form: str) -> None:
    made, archive, wanted = reference(model)
    case, written = CASES[upstream.MODELS[model]], upstream.FORMS[form]
    state = write_state(made, local=case.local and written.classic, norms=case.norms) | projector_state()
    shutil.copytree(CLIP, tmp_path / "clip")
    paths = written.write(Archive(dict(archive.members)), state, tmp_path)
    found = load(convert(paths.visual, case, tmp_path / "out", paths.llm))
    assert type(found).__name__ == case.model
    assert difference(found, wanted) <= TOLERANCE
