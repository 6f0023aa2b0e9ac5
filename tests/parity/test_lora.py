"""Merged adapters against the sum that training computes: base(x) + (alpha / rank) · B(A(x)), on every linear layer."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny import nemo_writer
from transformers import LlamaForCausalLM

from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from support import forms
from support.adapters import CANONICAL, FUSED, LEGACY_LAYERS, SECOND, UNFUSED, Lora, Scheme
from support.archives import CKPT, CLASSIC, CLIP, Archive
from support.conversion import write_model
from support.peft_writer import PeftAdapter
from support.states import state_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.parity

RANK, ALPHA = 3, 12.0
TOLERANCE = 1e-5
"""Largest difference of logits in float32, in parts of the largest logit."""
WRONG = 1e-2
"""A mistake moves logits by more than this part."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, converted: its language model has four heads in two groups."""
    return convert(CLASSIC, tmp_path_factory.mktemp("base") / "out")


def lora_of(base: Path, scheme: Scheme = FUSED) -> Lora:
    return Lora.random(language_model(base), rank=RANK, alpha=ALPHA, scheme=scheme)


@pytest.fixture
def lora(base: Path) -> Lora:
    return lora_of(base)


def convert(path: Path, out: Path, lora: Path | None = None, llm: Path | None = None) -> Path:
    write_model(out, CheckpointPaths(visual=path, llm=llm, lora=lora))
    return out


def language_model(out: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(out / "llm", dtype=torch.float32).eval()


def write(folder: Path, adapters: dict[str, Tensor], peft: dict[str, Any], *, distributed: bool = False) -> Path:
    """Write the tiny model's archive with adapters in it."""
    trained = Archive.read(CLASSIC)
    config = trained.config()
    tokenizer = trained.members[config["tokenizer"]["model"].removeprefix("nemo:")]
    state = torch.load(io.BytesIO(trained.members[CKPT]), weights_only=True) | adapters
    shutil.copytree(CLIP, folder / "clip", dirs_exist_ok=True)
    path = folder / "model.nemo"
    nemo_writer.write_archive(
        path,
        config=config | {"peft": peft},
        tokenizer=tokenizer,
        state=stacked(state) if distributed else state,
        distributed=distributed,
    )
    return path


def stacked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    for name in sorted(state):
        found.setdefault(re.sub(r"\.layers\.\d+\.", ".layers.", name), []).append(state[name])
    return {name: torch.stack(parts) if ".decoder.layers." in name else parts[0] for name, parts in found.items()}


def logits(model: Any) -> Tensor:
    ids = torch.from_numpy(torch.arange(20, 120).numpy() * 7 % 480)[None]
    with torch.inference_mode():
        scores: Tensor = model(input_ids=ids).logits[0]
    return scores


def difference(out: Path, base: Path, lora: Lora) -> float:
    reference = language_model(base)
    before = logits(reference)
    lora.attach(reference)
    wanted = logits(reference)
    assert float((wanted - before).abs().max()) > 1  # the adapters matter
    return float((logits(language_model(out)) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("distributed", [True, False], ids=["dist", "classic"])
def test_adapters_in_the_archive_are_merged_with_their_scale(
    tmp_path: Path, base: Path, lora: Lora, *, distributed: bool
) -> None:
    out = convert(write(tmp_path, lora.state(), lora.config(), distributed=distributed), tmp_path / "out")
    assert difference(out, base, lora) <= TOLERANCE


def test_adapters_under_the_older_names_are_merged(tmp_path: Path, base: Path, lora: Lora) -> None:
    out = convert(write(tmp_path, lora.state(LEGACY_LAYERS), lora.config()), tmp_path / "out")
    assert difference(out, base, lora) <= TOLERANCE


def test_adapters_of_parts_of_a_weight_are_merged(tmp_path: Path, base: Path) -> None:
    lora = lora_of(base, UNFUSED)
    out = convert(write(tmp_path, lora.state(), lora.config()), tmp_path / "out")
    assert difference(out, base, lora) <= TOLERANCE


def write_second(folder: Path, adapters: dict[str, Tensor], transform: dict[str, Any]) -> Path:
    """Write the tiny model as NeMo 2 does, with adapters in it."""
    archive = Archive.read(CLASSIC)
    named = {forms.nemo2_name(name): tensor for name, tensor in (state_of(archive) | adapters).items()}
    return forms.as_nemo2(archive, forms.stacked(named), forms.VISUAL, transform).write(folder)


@pytest.mark.parametrize("scheme", [SECOND, CANONICAL], ids=["lora", "canonical"])
def test_adapters_of_nemo_2_are_merged(tmp_path: Path, base: Path, scheme: Scheme) -> None:
    lora = lora_of(base, scheme)
    out = convert(write_second(tmp_path, lora.state(), lora.transform()), tmp_path / "out")
    assert difference(out, base, lora) <= TOLERANCE


def test_what_nemo_2_trained_goes_with_the_language_model_s_own_checkpoint(tmp_path: Path, base: Path) -> None:
    """NeMo 2 saves the adapters and the projector; what they were trained on lies elsewhere."""
    lora = lora_of(base, SECOND)
    archive = Archive.read(CLASSIC)
    trained = {name: tensor for name, tensor in state_of(archive).items() if name.startswith(forms.PROJECTOR)}
    named = {forms.nemo2_name(name): tensor for name, tensor in (trained | lora.state()).items()}
    visual = forms.as_nemo2(archive, forms.stacked(named), forms.VISUAL, lora.transform()).write(tmp_path)
    out = convert(visual, tmp_path / "out", llm=CLASSIC)
    assert difference(out, base, lora) <= TOLERANCE


def exchanged(*names: str) -> Any:
    """Adapters of the same shapes under one another's names."""

    def exchange(lora: Lora) -> dict[str, Tensor]:
        taken = dict(zip(names, reversed(names), strict=True))
        pattern = re.compile("|".join(map(re.escape, names)))
        return {pattern.sub(lambda match: taken[match[0]], name): tensor for name, tensor in lora.state().items()}

    return exchange


@pytest.mark.parametrize(
    ("scheme", "mistake"),
    [
        (UNFUSED, exchanged(".k_adapter", ".v_adapter")),
        (UNFUSED, exchanged(".gate_adapter", ".up_adapter")),
        (CANONICAL, exchanged("adapter_k", "adapter_v")),
        (CANONICAL, exchanged("adapter_gate", "adapter_up")),
    ],
    ids=["k v", "gate", "k v, NeMo 2", "gate, NeMo 2"],
)
def test_parts_in_another_order_are_seen_in_the_logits(
    tmp_path: Path, base: Path, scheme: Scheme, mistake: Any
) -> None:
    lora = lora_of(base, scheme)
    written = (
        write(tmp_path, mistake(lora), lora.config())
        if scheme is UNFUSED
        else write_second(tmp_path, mistake(lora), lora.transform())
    )
    assert difference(convert(written, tmp_path / "out"), base, lora) > WRONG


@pytest.mark.parametrize("scheme", [SECOND, CANONICAL], ids=["lora", "canonical"])
def test_another_alpha_is_seen_in_the_logits(tmp_path: Path, base: Path, scheme: Scheme) -> None:
    lora = lora_of(base, scheme)
    path = write_second(tmp_path, lora.state(), lora.transform() | {"alpha": RANK})
    assert difference(convert(path, tmp_path / "out"), base, lora) > WRONG


def test_queries_by_their_names_are_not_what_nemo_2_trained(tmp_path: Path, base: Path) -> None:
    """The trap of canonical LoRA: two groups of heads, and queries, keys and values added one behind the other."""
    lora = lora_of(base, CANONICAL)
    by_name = replace(lora, scheme=dict(CANONICAL))
    out = convert(write_second(tmp_path, lora.state(), lora.transform()), tmp_path / "out")
    assert difference(out, base, by_name) > WRONG


def contiguous(lora: Lora) -> dict[str, Tensor]:
    """Rows of B as queries, keys, values: what NeMo's removed runner took them for."""
    state = lora.state()
    for name in state:
        if name.endswith("lora_kqv_adapter.linear_out.weight"):
            layer = name.split(".")[3]
            parts = [lora.outward[f"{layer}.self_attn.{part}_proj"] for part in "qkv"]
            state[name] = torch.cat(parts)
    return state


def swapped(lora: Lora) -> dict[str, Tensor]:
    """Up before gate."""
    return {
        name: torch.cat(tensor.chunk(2)[::-1]) if "hto4h_adapter.linear_out" in name else tensor
        for name, tensor in lora.state().items()
    }


def unscaled(lora: Lora) -> dict[str, Tensor]:
    """As NeMo's merge script does."""
    return {name: tensor * (RANK / ALPHA) if "linear_out" in name else tensor for name, tensor in lora.state().items()}


@pytest.mark.parametrize(
    "mistake", [contiguous, swapped, unscaled, lambda _: {}], ids=["q k v", "gate", "scale", "none"]
)
def test_a_mistake_in_the_adapters_is_seen_in_the_logits(tmp_path: Path, base: Path, lora: Lora, mistake: Any) -> None:
    out = convert(write(tmp_path, mistake(lora), lora.config()), tmp_path / "out")
    assert difference(out, base, lora) > WRONG


def peft_of(base: Path) -> PeftAdapter:
    model = language_model(base)
    return PeftAdapter.random(model, "_proj$", lambda _: RANK, r=RANK, lora_alpha=ALPHA)


def relative(out: Path, wanted: Any) -> float:
    scores = logits(wanted)
    return float((logits(language_model(out)) - scores).abs().max() / scores.abs().max())


def test_an_adapter_of_peft_fits_the_fused_weights_of_nemo(tmp_path: Path, base: Path) -> None:
    adapter = peft_of(base).scaled(lambda _: ALPHA / RANK)
    out = convert(CLASSIC, tmp_path / "out", adapter.write(tmp_path / "adapter"))
    assert relative(out, adapter.merged(language_model(base))) <= TOLERANCE


@pytest.mark.parametrize(
    "mistake",
    [
        lambda adapter: replace(adapter, settings=adapter.settings | {"lora_alpha": RANK}),
        lambda adapter: replace(adapter, settings=adapter.settings | {"use_rslora": True}),
        lambda adapter: replace(
            adapter,
            matrices={
                name: adapter.matrices[name.replace("k_proj", "v_proj") if "k_proj" in name else name]
                for name in adapter.matrices
            },
        ),
    ],
    ids=["alpha", "root of the rank", "values for keys"],
)
def test_a_mistake_in_an_adapter_of_peft_is_seen_in_the_logits(tmp_path: Path, base: Path, mistake: Any) -> None:
    adapter = peft_of(base).scaled(lambda _: ALPHA / RANK)
    out = convert(CLASSIC, tmp_path / "out", mistake(adapter).write(tmp_path / "adapter"))
    assert relative(out, adapter.merged(language_model(base))) > WRONG
