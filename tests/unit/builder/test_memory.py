"""Memory and splitting of well-known models, against published sizes."""

from __future__ import annotations

import pytest

from multimodal_api.engine import Dtype, Limits
from multimodal_builder.checkpoints.config import LanguageConfig
from multimodal_builder.mappings.language_model import LanguageModel
from multimodal_builder.mappings.llama import LLAMA
from multimodal_builder.memory import CONTEXT, Memory, check_tensor_parallel, estimate, tensor_parallel_sizes
from multimodal_builder.tower_config import ClipConfig

CLIP_L = ClipConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
)
CLIP_L_PARAMETERS = 303_507_456
"""Of openai/clip-vit-large-patch14-336's tower."""
ONE = Limits(max_input_len=3840, max_output_len=256, max_batch_size=1, vision_max_batch_size=1)


def llama(layers: int, hidden: int, ffn: int, heads: int, groups: int, rows: int = 32000) -> LanguageModel:
    config = LanguageConfig.model_validate({
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": ffn,
        "num_attention_heads": heads,
        "num_query_groups": groups,
        "encoder_seq_length": 4096,
        "layernorm_epsilon": 1e-5,
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "position_embedding_type": "rope",
        "bias": False,
        "share_embeddings_and_output_weights": False,
        "tokenizer": {"library": "sentencepiece"},
    })  # fmt: skip
    return LLAMA.build(config, rows=rows)


MODELS = {
    "7B": llama(32, 4096, 11008, 32, 32),
    "13B": llama(40, 5120, 13824, 40, 40),
    "70B": llama(80, 8192, 28672, 64, 8),
    "8B": llama(32, 4096, 14336, 32, 8, rows=128256),
}


def memory(model: str, gpus: int = 1, **limits: int) -> Memory:
    wanted = ONE.model_copy(update=limits)
    return estimate(MODELS[model], CLIP_L, CLIP_L_PARAMETERS, limits=wanted, num_gpus=gpus, dtype=Dtype.BFLOAT16)


@pytest.mark.parametrize(
    ("model", "parameters", "cache"),  # as published; GiB of 4096 positions in bfloat16
    [
        ("7B", 6_738_415_616, 2.0),
        ("13B", 13_015_864_320, 3.125),
        ("70B", 68_976_648_192, 1.25),
        ("8B", 8_030_261_248, 0.5),
    ],
)
def test_weights_and_cache_are_the_known_sizes(model: str, parameters: int, cache: float) -> None:
    found = memory(model)
    assert found.weights == 2 * parameters
    assert found.cache == cache * 2**30
    assert found.media_encoder == 2 * CLIP_L_PARAMETERS
    assert found.total == found.weights + found.cache + found.media_encoder + found.activations + found.reserved


def test_more_gpus_share_weights_and_cache_and_no_encoder() -> None:
    one, four = memory("70B"), memory("70B", 4)
    assert four.weights == pytest.approx(one.weights / 4, rel=1e-3)
    assert four.cache == one.cache // 4
    assert four.media_encoder == one.media_encoder


def test_more_gpus_than_keys_hold_copies() -> None:
    eight, sixteen = memory("70B", 8), memory("70B", 16)
    assert sixteen.cache == eight.cache
    assert sixteen.weights > eight.weights / 2 * 1.005


def test_the_cpu_has_no_context_to_reserve() -> None:
    assert memory("7B").total - memory("7B", 0).total == CONTEXT


@pytest.mark.parametrize("limit", ["max_batch_size", "max_input_len", "max_output_len", "vision_max_batch_size"])
def test_larger_limits_need_more(limit: str) -> None:
    assert memory("7B", **{limit: 512 + getattr(ONE, limit)}).total > memory("7B").total


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (MODELS["7B"], (1, 2, 4, 8, 16, 32)),
        (MODELS["13B"], (1, 2, 4, 5, 8, 10, 20, 40)),
        (MODELS["70B"], (1, 2, 4, 8, 16, 32, 64)),
        (llama(2, 96, 256, 6, 3, rows=500), (1,)),
    ],
    ids=["7B", "13B", "70B", "rows of three"],
)
def test_only_even_splits_fit(model: LanguageModel, sizes: tuple[int, ...]) -> None:
    # 32000 rows are 500 times 64; the thirteen billion's 13824 = 2^9 · 27 does not share out over 5.
    wanted = tuple(size for size in sizes if model.ffn % size == 0)
    assert tensor_parallel_sizes(model) == wanted
    assert all(not list(check_tensor_parallel(model, size)) for size in wanted)


def test_an_uneven_split_is_refused_with_every_reason() -> None:
    (failure,) = check_tensor_parallel(MODELS["70B"], 3)
    assert failure.at == "spec.numGpus"
    for words in ("64 attention heads", "8 key/value heads", "28672 rows of the feed-forward", "32000 rows of the voc"):
        assert words in failure.problem
    assert failure.remedy == "set it to one of 1, 2, 4, 8, 16, 32, 64"
