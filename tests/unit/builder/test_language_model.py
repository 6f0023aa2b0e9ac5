"""Which of transformers' classes a configuration becomes, and what is said when none can hold it."""

from __future__ import annotations

from typing import Any

import pytest

from multimodal_api.families import LlmType
from multimodal_builder.checkpoints.tensors import TensorInfo
from multimodal_builder.mappings import megatron
from multimodal_builder.mappings.architectures import ARCHITECTURES, fitting_types, nearest
from multimodal_builder.mappings.base import interpret
from multimodal_builder.mappings.requirements import Requirement
from support.settings import model_config

GPT = {"normalization": "layernorm", "activation": "gelu", "bias": True, "num_query_groups": None}
NEMOTRON = GPT | {"normalization": "layernorm1p", "activation": "squared-relu", "bias": False}
LEARNED = GPT | {"position_embedding_type": "learned_absolute"}
GEMMA = {"activation": "geglu", "openai_gelu": True}
FALCON = GPT | {"mcore_customization_config": {"parallel_attention": True}}
FALCON_NEW = GPT | {"mcore_customization_config": {"parallel_attention": True, "new_decoder_architecture": True}}
MIXTRAL = {"num_moe_experts": 3}

ALL_GPT = (LlmType.GPTNEXT, LlmType.GPT, LlmType.STARCODER)

CHOICES: dict[str, tuple[dict[str, Any], str, tuple[LlmType, ...]]] = {
    "llama": ({}, "LlamaForCausalLM", (LlmType.LLAMA,)),
    "llama with biases": ({"bias": True}, "LlamaForCausalLM", (LlmType.LLAMA,)),
    "llama that looks back a window": ({"window_size": [32, 0]}, "MistralForCausalLM", (LlmType.LLAMA,)),
    "llama whose window is no shorter than a sequence": (
        {"window_size": [64, 0]},
        "LlamaForCausalLM",
        (LlmType.LLAMA,),
    ),
    "llama whose window has no end": ({"window_size": [-1, 0]}, "LlamaForCausalLM", (LlmType.LLAMA,)),
    "llama with odd heads": ({"num_attention_heads": 6, "kv_channels": 2}, "MistralForCausalLM", (LlmType.LLAMA,)),
    "mixtral": (MIXTRAL, "MixtralForCausalLM", (LlmType.MIXTRAL,)),
    "gemma": (GEMMA, "GemmaForCausalLM", (LlmType.GEMMA,)),
    "falcon": (FALCON, "FalconForCausalLM", (LlmType.FALCON,)),
    "falcon with one key": (FALCON | {"multi_query_mode": True}, "FalconForCausalLM", (LlmType.FALCON,)),
    "new falcon with groups": (FALCON_NEW | {"num_query_groups": 2}, "FalconForCausalLM", (LlmType.FALCON,)),
    "nemotron": (NEMOTRON | {"rotary_percentage": 0.5}, "NemotronForCausalLM", ALL_GPT),
    "plain norms, half heads": (GPT | {"rotary_percentage": 0.5}, "NemotronForCausalLM", ALL_GPT),
    "starcoder 2": (GPT | {"num_query_groups": 2, "openai_gelu": True}, "Starcoder2ForCausalLM", ALL_GPT),
    "gpt-2": (LEARNED, "GPT2LMHeadModel", ALL_GPT),
    "layernorm1p, learned": (LEARNED | {"normalization": "layernorm1p"}, "GPT2LMHeadModel", ALL_GPT),
    "starcoder": (LEARNED | {"num_query_groups": 1}, "GPTBigCodeForCausalLM", ALL_GPT),
}


@pytest.mark.parametrize(("changes", "name", "types"), CHOICES.values(), ids=CHOICES.keys())
def test_a_configuration_decides_the_class_and_the_types_that_have_it(
    changes: dict[str, Any], name: str, types: tuple[LlmType, ...]
) -> None:
    config = model_config(**changes)
    assert set(fitting_types(config)) == set(types)
    for llm_type in types:
        architecture = nearest(config, llm_type)
        assert (architecture.name, architecture.broken(config)) == (name, ())


@pytest.mark.parametrize(("changes", "name", "types"), CHOICES.values(), ids=CHOICES.keys())
@pytest.mark.parametrize("local", [False, True], ids=["Transformer Engine", "local spec"])
def test_a_whole_checkpoint_is_consumed_and_sets_every_parameter(
    changes: dict[str, Any], name: str, types: tuple[LlmType, ...], *, local: bool
) -> None:
    config = model_config(**changes)
    model = nearest(config, types[0]).build(config, rows=16, positions=24)
    index = {
        _local(source) if local else source: TensorInfo("F32", shape)
        for source, shape in megatron.tensors(config, rows=16, positions=24).items()
    }
    mapped = interpret(model.rules, index, model.parameters)
    assert (mapped.unknown, mapped.missing, mapped.wrong) == ((), (), ())
    assert model.config["architectures"] == [name]
    assert model.config["vocab_size"] == 16


def _local(name: str) -> str:
    return name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.").replace(
        "mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."
    )


@pytest.mark.parametrize(
    ("changes", "llm_type", "key", "needs"),
    [
        ({"normalization": "layernorm"}, LlmType.LLAMA, "normalization", "rmsnorm"),
        (GPT | {"activation": "swiglu"}, LlmType.GPT, "activation", "gelu or squared-relu"),
        (LEARNED | {"bias": False}, LlmType.GPT, "bias", "true"),
        (LEARNED | {"num_query_groups": 2}, LlmType.STARCODER, "num_query_groups", "num_attention_heads or null"),
        (LEARNED | {"kv_channels": 3}, LlmType.GPT, "kv_channels", "hidden_size / num_attention_heads"),
        (GEMMA | {"openai_gelu": False}, LlmType.GEMMA, "openai_gelu", "true"),
        (GEMMA | {"apply_embedding_scaling": False}, LlmType.GEMMA, "apply_embedding_scaling", "null or true"),
        (MIXTRAL | {"bias": True}, LlmType.MIXTRAL, "bias", "false"),
        (FALCON | {"num_query_groups": 2}, LlmType.FALCON, "num_query_groups", "new_decoder_architecture is false"),
        (NEMOTRON | {"window_size": [8, 0]}, LlmType.GPTNEXT, "window_size", "null"),
    ],
)
def test_what_no_class_can_hold_is_told_by_its_key(
    changes: dict[str, Any], llm_type: LlmType, key: str, needs: str
) -> None:
    config = model_config(**changes)
    assert fitting_types(config) == ()
    (requirement,) = nearest(config, llm_type).broken(config)
    assert requirement.key == key
    assert needs in requirement.needs


def test_every_type_of_the_resource_has_a_class() -> None:
    assert set(ARCHITECTURES) == set(LlmType)


def test_every_requirement_names_a_key_of_the_configuration() -> None:
    config = model_config()
    named = [req for architectures in ARCHITECTURES.values() for one in architectures for req in one.requirements]
    assert all(isinstance(req, Requirement) and req.needs for req in named)
    for requirement in named:
        requirement.value(config)


def test_the_table_of_positions_limits_the_sequence() -> None:
    config = model_config(**LEARNED, max_position_embeddings=64)
    model = nearest(config, LlmType.GPT).build(config, rows=16, positions=24)
    assert model.positions == model.config["n_positions"] == 24
    assert model.parameters["transformer.wpe.weight"] == (24, 8)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"rope_type": "default", "rope_theta": 1e4}),
        ({"seq_len_interpolation_factor": 1}, {"rope_type": "default", "rope_theta": 1e4}),
        ({"seq_len_interpolation_factor": 4}, {"rope_type": "linear", "rope_theta": 1e4, "factor": 4}),
        (
            {"scale_positional_embedding": True, "rotary_base": 5e5},
            {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8,
                "low_freq_factor": 1,
                "high_freq_factor": 4,
                "original_max_position_embeddings": 8192,
            },
        ),
    ],
)
def test_rotary_positions_are_described(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    config = model_config(**changes)
    assert nearest(config, LlmType.LLAMA).build(config, rows=16).config["rope_parameters"] == expected
