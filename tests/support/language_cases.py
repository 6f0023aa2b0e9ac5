"""Every kind of language model: transformers' class with random weights, and NeMo's configuration of the same model.

What comes out of a conversion is compared here by its logits, at positions near each other and as far apart as a model
has positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from tiny import nemo_writer
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    GPTBigCodeConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Starcoder2Config,
)

from multimodal_api.families import LlmType
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from support import forms
from support.archives import DISTRIBUTED, Archive
from support.conversion import write_model
from support.megatron_writer import State, write_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

VOCAB: Final = 500
TOLERANCE: Final = 1e-5
"""Largest difference of logits in float32, in parts of the largest logit."""
WRONG: Final = 1e-2
"""A mistake moves logits by more than this part."""
HIDDEN: Final = 64
FFN: Final = 96
HEADS: Final = 8
GROUPS: Final = 4
"""Of grouped models: as many as the most tensor-parallel ranks that a test has."""
TOWER_WIDTH: Final = 64
POSITIONS: Final = 16_384
TABLE: Final = 96
"""Learned positions."""


@dataclass(frozen=True)
class Case:
    """A model of transformers, and NeMo's configuration of it."""

    llm_type: LlmType
    config: PreTrainedConfig
    settings: dict[str, Any]
    distributed: bool = True
    local: bool = False
    norms: float = 0.0
    """NeMo's weights of norms are transformers' and this."""
    model: str = field(kw_only=True)
    """The class that has to come out."""


ROPE: Final = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
}
SWIGLU: Final = {
    "normalization": "rmsnorm",
    "activation": "fast-swiglu",
    "bias": False,
    "position_embedding_type": "rope",
}
GEGLU: Final = SWIGLU | {
    "kv_channels": 40,
    "activation": "geglu",
    "openai_gelu": True,
    "apply_embedding_scaling": True,
}
GPT: Final = {"normalization": "layernorm", "activation": "gelu", "bias": True, "position_embedding_type": "rope"}
LEARNED: Final = GPT | {
    "position_embedding_type": "learned_absolute",
    "encoder_seq_length": TABLE,
    "max_position_embeddings": TABLE,
}
LEARNED_SIZES: Final = {
    "vocab_size": VOCAB,
    "n_embd": HIDDEN,
    "n_inner": FFN,
    "n_layer": 2,
    "n_head": HEADS,
    "n_positions": TABLE,
}


def falcon(*, new: bool, groups: int, bias: bool = False) -> FalconConfig:
    return FalconConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        ffn_hidden_size=FFN,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_kv_heads=groups,
        multi_query=groups == 1,
        new_decoder_architecture=new,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        bias=bias,
    )


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4} | parameters}


LLAMA3: Final = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

CASES: Final = {
    "llama": Case(
        LlmType.LLAMA,
        LlamaConfig(**ROPE, **rope(rope_theta=5e5), num_key_value_heads=GROUPS),
        SWIGLU | {"num_query_groups": GROUPS, "rotary_base": 500_000},
        model="LlamaForCausalLM",
    ),
    "llama, biases, one key": Case(
        LlmType.LLAMA,
        LlamaConfig(**ROPE, num_key_value_heads=1, attention_bias=True, mlp_bias=True),
        SWIGLU | {"num_query_groups": None, "multi_query_mode": True, "bias": True},
        distributed=False,
        local=True,
        model="LlamaForCausalLM",
    ),
    "llama, tied, null groups, zero-centred norms": Case(
        LlmType.LLAMA,
        LlamaConfig(**ROPE | {"tie_word_embeddings": True}),
        SWIGLU | {"num_query_groups": None, "layernorm_zero_centered_gamma": True},
        norms=-1.0,
        model="LlamaForCausalLM",
    ),
    "llama 3.1": Case(
        LlmType.LLAMA,
        LlamaConfig(**ROPE, **rope(rope_theta=5e5, **LLAMA3), num_key_value_heads=GROUPS, head_dim=32),
        SWIGLU
        | {"num_query_groups": GROUPS, "rotary_base": 5e5, "scale_positional_embedding": True, "kv_channels": 32},
        model="LlamaForCausalLM",
    ),
    "llama, positions interpolated": Case(
        LlmType.LLAMA,
        LlamaConfig(**ROPE, **rope(rope_type="linear", factor=4.0), num_key_value_heads=GROUPS),
        SWIGLU | {"num_query_groups": GROUPS, "seq_len_interpolation_factor": 4},
        model="LlamaForCausalLM",
    ),
    "mistral, a window": Case(
        LlmType.LLAMA,
        MistralConfig(**ROPE, num_key_value_heads=GROUPS, head_dim=24, sliding_window=8),
        SWIGLU | {"num_query_groups": GROUPS, "kv_channels": 24, "window_size": [8, 0]},
        model="MistralForCausalLM",
    ),
    "mixtral": Case(
        LlmType.MIXTRAL,
        MixtralConfig(
            **ROPE, **rope(rope_theta=1e6), num_key_value_heads=GROUPS, num_local_experts=4, num_experts_per_tok=2
        ),
        SWIGLU | {"num_query_groups": GROUPS, "rotary_base": 1e6, "num_moe_experts": 4, "moe_router_topk": 2},
        model="MixtralForCausalLM",
    ),
    "gemma": Case(
        LlmType.GEMMA,
        GemmaConfig(**ROPE | {"tie_word_embeddings": True}, num_key_value_heads=HEADS, head_dim=40, rms_norm_eps=1e-5),
        GEGLU | {"num_query_groups": HEADS},
        norms=1.0,
        model="GemmaForCausalLM",
    ),
    "gemma, one key": Case(
        LlmType.GEMMA,
        GemmaConfig(**ROPE | {"tie_word_embeddings": True}, num_key_value_heads=1, head_dim=40, rms_norm_eps=1e-5),
        GEGLU | {"num_query_groups": 1},
        distributed=False,
        norms=1.0,
        model="GemmaForCausalLM",
    ),
    "falcon, old": Case(
        LlmType.FALCON,
        falcon(new=False, groups=1),
        GPT
        | {"num_query_groups": 1, "bias": False}
        | {"mcore_customization_config": {"new_decoder_architecture": False, "parallel_attention": True}},
        distributed=False,
        model="FalconForCausalLM",
    ),
    "falcon, new": Case(
        LlmType.FALCON,
        falcon(new=True, groups=GROUPS, bias=True),
        GPT
        | {"num_query_groups": GROUPS}
        | {"mcore_customization_config": {"new_decoder_architecture": True, "parallel_attention": True}},
        local=True,
        model="FalconForCausalLM",
    ),
    "starcoder": Case(
        LlmType.STARCODER,
        GPTBigCodeConfig(**LEARNED_SIZES, tie_word_embeddings=False),
        LEARNED | {"num_query_groups": 1, "openai_gelu": True},
        model="GPTBigCodeForCausalLM",
    ),
    "starcoder 2": Case(
        LlmType.GPT,
        Starcoder2Config(**ROPE, num_key_value_heads=GROUPS),
        GPT | {"num_query_groups": GROUPS, "openai_gelu": True},
        local=True,
        model="Starcoder2ForCausalLM",
    ),
    "nemotron": Case(
        LlmType.GPTNEXT,
        NemotronConfig(**ROPE, **rope(partial_rotary_factor=0.5), num_key_value_heads=GROUPS, head_dim=24),
        GPT
        | {"normalization": "layernorm1p", "activation": "squared-relu", "bias": False, "rotary_percentage": 0.5}
        | {"num_query_groups": GROUPS, "kv_channels": 24},
        model="NemotronForCausalLM",
    ),
    "plain norms, a quarter of each head rotated": Case(
        LlmType.GPT,
        NemotronConfig(
            **ROPE,
            **rope(partial_rotary_factor=0.25),
            num_key_value_heads=HEADS,
            hidden_act="gelu",
            attention_bias=True,
            mlp_bias=True,
        ),
        GPT | {"rotary_percentage": 0.25},
        distributed=False,
        norms=1.0,
        model="NemotronForCausalLM",
    ),
    "gpt-2": Case(
        LlmType.GPT,
        GPT2Config(**LEARNED_SIZES),
        LEARNED | {"share_embeddings_and_output_weights": True, "openai_gelu": True},
        distributed=False,
        model="GPT2LMHeadModel",
    ),
    "gpt-2, layernorm1p, untied": Case(
        LlmType.GPTNEXT,
        GPT2Config(**LEARNED_SIZES, tie_word_embeddings=False, activation_function="gelu"),
        LEARNED | {"normalization": "layernorm1p"},
        norms=-1.0,
        model="GPT2LMHeadModel",
    ),
}


def make_reference(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return model


def archive_of(case: Case) -> Archive:
    """The archive of a NeVA around the model, without weights."""
    trained = Archive.read(DISTRIBUTED)
    archive = Archive({name: data for name, data in trained.members.items() if not name.startswith("model_weights")})
    config = archive.config() | {
        "hidden_size": HIDDEN,
        "ffn_hidden_size": FFN,
        "num_layers": 2,
        "num_attention_heads": HEADS,
        "num_query_groups": None,
        "kv_channels": None,
        "rotary_base": 10_000,
        "layernorm_epsilon": getattr(case.config, "rms_norm_eps", 1e-5),
        "encoder_seq_length": POSITIONS,
        "max_position_embeddings": POSITIONS,
        "share_embeddings_and_output_weights": case.config.tie_word_embeddings,
        **case.settings,
    }
    config["mm_cfg"]["mm_mlp_adapter_type"] = "linear"
    config["mm_cfg"]["vision_encoder"]["from_pretrained"] = "clip"
    return archive.replace_config(config)


def projector_state() -> State:
    chance = torch.Generator().manual_seed(5)
    return {
        f"{nemo_writer.PROJECTOR}weight": torch.randn(HIDDEN, TOWER_WIDTH, generator=chance),
        f"{nemo_writer.PROJECTOR}bias": torch.randn(HIDDEN, generator=chance),
    }


def write_checkpoint(
    folder: Path, reference: PreTrainedModel, case: Case, change: Callable[[State], object] | None = None
) -> Path:
    archive = archive_of(case)
    state = write_state(reference, local=case.local, norms=case.norms) | projector_state()
    if change:
        change(state)
    if case.distributed:
        state = forms.stacked(state)
    path = archive.write(folder)  # the tower beside it
    config = archive.config()
    tokenizer = archive.members[config["tokenizer"]["model"].removeprefix("nemo:")]
    nemo_writer.write_archive(path, config=config, tokenizer=tokenizer, state=state, distributed=case.distributed)
    return path


def convert(visual: Path, case: Case, out: Path, llm: Path | None = None) -> Path:
    write_model(out, CheckpointPaths(visual=visual, llm=llm), llm_type=case.llm_type)
    return out


def load(out: Path) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(out / "llm", dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    loaded: PreTrainedModel = model.eval()
    return loaded


def scores(model: PreTrainedModel) -> Tensor:
    """Score 32 tokens, id 0 among them, twice: near each other, and the second half as far off as positions go.

    Returns:
        [2, 32, `VOCAB`].
    """
    ids = torch.randint(0, VOCAB, (1, 32), generator=torch.Generator().manual_seed(3)).repeat(2, 1)
    ids[:, ::9] = 0
    positions = torch.arange(32).repeat(2, 1)
    longest: int = model.config.max_position_embeddings
    positions[1, 16:] += longest - 32
    with torch.inference_mode():
        # A mask of ones: without one transformers takes a leap of positions for the next of several sequences.
        output = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids))
    found: Tensor = output.logits[..., :VOCAB]
    return found


def difference(found: PreTrainedModel, wanted: Tensor) -> float:
    """Give the largest difference from scores in parts of the largest, near and far."""
    assert float(wanted.abs().amax((1, 2)).min()) > 1
    distances = (scores(found) - wanted).abs().amax((1, 2)) / wanted.abs().amax((1, 2))
    return float(distances.max())
