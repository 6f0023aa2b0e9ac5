"""Every kind of language model: transformers' class, written as NeMo's archive, converted, and loaded again.

The writer (`tests/support/megatron_writer.py`) and the product's tables share no code. Weights are the same bits but
for the offsets of norms, so that logits in float32 differ by rounding alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import PreTrainedModel

from multimodal_api.build import ExitCode
from multimodal_builder.main import main
from multimodal_modeling.llm import LanguageModel
from multimodal_modeling.model import MultimodalModel
from multimodal_modeling.splice import splice
from support.language_cases import (
    CASES,
    HIDDEN,
    TOLERANCE,
    VOCAB,
    WRONG,
    Case,
    convert,
    difference,
    load,
    make_reference,
    scores,
    write_checkpoint,
)
from support.megatron_writer import PADDED

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.parity

HEAD = "model.output_layer.weight"


@dataclass(frozen=True)
class Converted:
    case: Case
    reference: PreTrainedModel
    found: PreTrainedModel


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("checkpoint")
    reference = make_reference(case.config)
    path = write_checkpoint(folder, reference, case)
    return Converted(case, reference, load(convert(path, case, folder / "out")))


def test_converted_models_score_as_the_original(converted: Converted) -> None:
    assert type(converted.found).__name__ == converted.case.model
    assert converted.found.config.vocab_size == PADDED
    assert difference(converted.found, scores(converted.reference)) <= TOLERANCE


def test_served_step_by_step_from_embeddings_they_score_the_same(converted: Converted) -> None:
    """As a worker runs them: a prompt of embeddings, then one token at a time, all through one cache."""
    served = LanguageModel(converted.found)
    ids = torch.randint(0, VOCAB, (24,), generator=torch.Generator().manual_seed(9))
    cache = served.new_cache()
    with torch.inference_mode():
        embeddings = served.embed(ids)
        steps = [served.logits(embeddings[None, :12], cache, last=1)]
        steps += [served.logits(embeddings[None, at : at + 1], cache) for at in range(12, 24)]
        wanted = converted.reference(input_ids=ids[None]).logits[0, 11:]
    found = torch.cat(steps, dim=1)[0, :, :VOCAB]
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= TOLERANCE


def test_gemma_scales_media_as_it_scales_text(tmp_path: Path) -> None:
    """In training media stand among the embeddings when these are multiplied by the square root of their width."""
    case = CASES["gemma"]
    reference = make_reference(case.config)
    out = convert(write_checkpoint(tmp_path, reference, case), case, tmp_path / "out")
    served = MultimodalModel.load(out, dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.arange(10)
    media = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(1)) * 0.1
    raw = reference.get_input_embeddings().weight[ids].detach().clone()
    raw[4:7] = media

    def distance(found: Tensor) -> float:
        with torch.inference_mode():
            wanted = reference(inputs_embeds=raw[None] * HIDDEN**0.5).logits[0, :, :VOCAB]
            scores = served.llm.logits(found[None], served.llm.new_cache())[0, :, :VOCAB]
        return float((scores - wanted).abs().max() / wanted.abs().max())

    assert distance(served.prompt_embeddings(ids.tolist(), range(4, 7), media)) <= TOLERANCE
    assert distance(splice(served.llm.embed(ids), media, torch.arange(4, 7))) > WRONG


@pytest.mark.parametrize("name", ["gemma", "gpt-2", "falcon, new"])
def test_models_that_transformers_llava_cannot_hold_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    case = CASES[name]
    path = write_checkpoint(tmp_path, make_reference(case.config), case)
    arguments = [str(path), str(tmp_path / "out"), "--llm-type", case.llm_type]
    assert main(["convert", *arguments, "--layout", "llava"]) == ExitCode.REFUSED
    assert f"cannot hold a {case.model}" in capsys.readouterr().err
