"""Adapters of experts: a tiny Mixtral as NeMo's archive, merged, against the same sum on transformers' weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny import nemo_writer
from transformers import MixtralConfig, MixtralForCausalLM

from multimodal_api.families import LlmType
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from support import forms
from support.archives import CLASSIC, Archive
from support.conversion import write_model
from support.megatron_writer import write_state

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.parity

HIDDEN, FFN, HEADS, GROUPS, EXPERTS, LAYERS, VOCAB = 64, 96, 4, 2, 4, 2, 500
RANK, ALPHA = 3, 12.0
TOLERANCE = 1e-5
"""Largest difference of logits in float32, in parts of the largest logit."""
WRONG = 1e-2
"""A mistake moves logits by more than this part."""
EXPERT = "mlp.experts.local_experts.{}"
SIZES = {"linear_fc1": (HIDDEN, 2 * FFN), "linear_fc2": (FFN, HIDDEN)}
MOE = {"linear_fc1": "lora_moe_hto4h_adapter", "linear_fc2": "lora_moe_4htoh_adapter"}

Pair = tuple["Tensor", "Tensor"]


@pytest.fixture(scope="module")
def reference() -> MixtralForCausalLM:
    torch.manual_seed(11)
    config = MixtralConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        num_local_experts=EXPERTS,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    model = MixtralForCausalLM(config).float().eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return model


def pairs(*, shared: bool) -> dict[tuple[int, int, str], Pair]:
    """A and B by layer, expert and matrix; the same ones for all experts where they share."""
    chance = torch.Generator().manual_seed(3)
    found: dict[tuple[int, int, str], Pair] = {}
    for layer in range(LAYERS):
        for name, (inputs, outputs) in SIZES.items():
            for expert in range(EXPERTS):
                found[layer, expert, name] = (
                    torch.randn(RANK, inputs, generator=chance) * 0.2,
                    torch.randn(outputs, RANK, generator=chance) * 0.2,
                )
                if shared:
                    found[layer, expert, name] = found[layer, 0, name]
    return found


def changed(reference: MixtralForCausalLM, adapters: dict[tuple[int, int, str], Pair]) -> MixtralForCausalLM:
    """Add (alpha / rank) · B · A to the weights of transformers' experts."""
    model = copy.deepcopy(reference)
    with torch.no_grad():
        for (layer, expert, name), (first, second) in adapters.items():
            experts = model.model.layers[layer].mlp.experts
            weight = experts.gate_up_proj if name == "linear_fc1" else experts.down_proj
            weight[expert] += ALPHA / RANK * (second @ first)
    return model


def settings() -> dict[str, Any]:
    sizes = {"hidden_size": HIDDEN, "ffn_hidden_size": FFN, "num_layers": LAYERS, "num_attention_heads": HEADS}
    return {
        **Archive.read(CLASSIC).config(),
        **sizes,
        "num_query_groups": GROUPS,
        "kv_channels": None,
        "num_moe_experts": EXPERTS,
        "moe_router_topk": 2,
        "layernorm_epsilon": 1e-5,
        "encoder_seq_length": 4096,
        "max_position_embeddings": 4096,
    }


def write(folder: Path, reference: MixtralForCausalLM, adapters: dict[str, Tensor]) -> Path:
    trained = Archive.read(CLASSIC)
    config = settings() | {"peft": {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": RANK, "alpha": ALPHA}}}
    config["mm_cfg"]["mm_mlp_adapter_type"] = "linear"
    tokenizer = trained.members[config["tokenizer"]["model"].removeprefix("nemo:")]
    state = write_state(reference, local=False) | adapters
    state[f"{nemo_writer.PROJECTOR}weight"] = torch.ones(HIDDEN, 64)
    state[f"{nemo_writer.PROJECTOR}bias"] = torch.ones(HIDDEN)
    path = trained.write(folder)  # the tower beside it
    nemo_writer.write_archive(path, config=config, tokenizer=tokenizer, state=state, distributed=False)
    return path


def convert(folder: Path, **paths: Path) -> MixtralForCausalLM:
    out = folder / "out"
    write_model(out, CheckpointPaths(**paths), llm_type=LlmType.MIXTRAL)
    return MixtralForCausalLM.from_pretrained(out / "llm", dtype=torch.float32).eval()


def logits(model: MixtralForCausalLM) -> Tensor:
    ids = torch.randint(0, VOCAB, (1, 48), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        scores: Tensor = model(input_ids=ids).logits[0, :, :VOCAB]
    return scores


def difference(found: MixtralForCausalLM, reference: MixtralForCausalLM) -> float:
    wanted = logits(reference)
    return float((logits(found) - wanted).abs().max() / wanted.abs().max())


def first(adapters: dict[tuple[int, int, str], Pair], *, own: int = 0) -> dict[str, Tensor]:
    """NeMo 1's names: every expert has the adapters of all experts, and uses the one of its own number.

    Args:
        adapters: Those that are used.
        own: What to add to an expert's number; anything but 0 is the mistake.
    """
    state: dict[str, Tensor] = {}
    for (layer, expert, name), (inward, outward) in adapters.items():
        prefix = f"model.decoder.layers.{layer}.{EXPERT.format(expert)}.adapter_layer.{MOE[name]}.expert_adapters"
        for other in range(EXPERTS):
            used = other == (expert + own) % EXPERTS
            state[f"{prefix}.{other}.linear_in.weight"] = inward if used else torch.randn_like(inward)
            state[f"{prefix}.{other}.linear_out.weight"] = outward if used else torch.ones_like(outward)
    return state


def test_each_expert_gets_its_own_adapter(tmp_path: Path, reference: MixtralForCausalLM) -> None:
    adapters = pairs(shared=False)
    found = convert(tmp_path, visual=write(tmp_path, reference, first(adapters)))
    assert difference(found, changed(reference, adapters)) <= TOLERANCE
    assert difference(found, reference) > WRONG


def test_the_adapter_of_another_expert_is_seen_in_the_logits(tmp_path: Path, reference: MixtralForCausalLM) -> None:
    adapters = pairs(shared=False)
    found = convert(tmp_path, visual=write(tmp_path, reference, first(adapters, own=1)))
    assert difference(found, changed(reference, adapters)) > WRONG


@pytest.mark.parametrize("shared", [True, False], ids=["one for all", "one each"])
def test_adapters_of_nemo_2_in_a_checkpoint_of_their_own(
    tmp_path: Path, reference: MixtralForCausalLM, *, shared: bool
) -> None:
    """Stacked by layers; and by experts, where these have one each."""
    adapters = pairs(shared=shared)
    stacked = {}
    for name in SIZES:
        for side, index in (("in", 0), ("out", 1)):
            of_layers = [[adapters[layer, expert, name][index] for expert in range(EXPERTS)] for layer in range(LAYERS)]
            stacked[f"module.decoder.layers.mlp.experts.experts.{name}.adapter.linear_{side}.weight"] = torch.stack(
                [layer[0] if shared else torch.stack(layer) for layer in of_layers]
            )
    config = forms.LANGUAGE | {"hidden_size": HIDDEN, "ffn_hidden_size": FFN, "num_moe_experts": EXPERTS}
    transform = {"_target_": "nemo.collections.llm.peft.lora.LoRA", "dim": RANK, "alpha": ALPHA}
    lora = forms.as_nemo2(Archive.read(CLASSIC), stacked, config, transform).write(tmp_path, "lora.nemo")
    found = convert(tmp_path, visual=write(tmp_path, reference, {}), lora=lora)
    assert difference(found, changed(reference, adapters)) <= TOLERANCE
