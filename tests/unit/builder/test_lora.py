"""Which adapters are merged, and every way in which they do not fit; the sums against numpy's in float64.

What NeMo's modules compute is written down here once more, rank by rank, from their forward functions and from what
their ranks store; the product's tables of rows share nothing with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.casts import cast
from multimodal_builder.checkpoints.config import LanguageConfig, LoraSection
from multimodal_builder.checkpoints.tensors import TensorInfo
from multimodal_builder.lora import BLOCK, Adapters, merge_adapters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_builder.checkpoints.tensors import Array, TensorSource

LAYER = "model.decoder.layers.0"
LEGACY = "model.language_model.encoder.layers.0"
KQV = f"{LAYER}.self_attention.adapter_layer.lora_kqv_adapter"
WEIGHT = f"{LAYER}.self_attention.linear_qkv.weight"
NORM = "model.decoder.final_layernorm.weight"
HEADS, GROUPS, SIZE, HIDDEN, FFN, RANK, ALPHA = 4, 2, 2, 6, 8, 4, 12.0
CONFIG = {
    "num_layers": 1,
    "hidden_size": HIDDEN,
    "ffn_hidden_size": FFN,
    "num_attention_heads": HEADS,
    "num_query_groups": GROUPS,
    "kv_channels": SIZE,
    "encoder_seq_length": 16,
    "layernorm_epsilon": 1e-5,
    "activation": "fast-swiglu",
    "tokenizer": {"library": "sentencepiece"},
}
MODEL = LanguageConfig.model_validate(CONFIG)


class Memory:
    """Tensors in memory; float32, or stored as bfloat16; in parts, where a distributed form would hold them so."""

    def __init__(
        self, tensors: Mapping[str, Array], dtype: str = "F32", parts: Mapping[str, int] | None = None
    ) -> None:
        self.tensors = {name: cast(array, source="F32", target=dtype) for name, array in tensors.items()}
        self.dtype = dtype
        self.parts = parts or {}

    def infos(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(self.dtype, array.shape) for name, array in self.tensors.items()}

    def read(self, name: str) -> Array:
        return self.tensors[name]

    def shards(self, name: str, axis: int) -> int:
        return self.parts.get(name, 1) if axis == 0 else 1


def chance(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((sum(shape), seed)).standard_normal(shape, dtype=np.float32)


def base(**tensors: Array) -> dict[str, Array]:
    return {NORM: chance(6), WEIGHT: chance(16, 6), **tensors}


def pair(name: str = KQV, *, rank: int = 2, rows: int = 16, columns: int = 6, seed: int = 0) -> dict[str, Array]:
    return {
        f"{name}.linear_in.weight": chance(rank, columns, seed=seed),
        f"{name}.linear_out.weight": chance(rows, rank, seed=seed),
    }


def adapters(tensors: Mapping[str, Array], at: str = "lora.nemo", **config: Any) -> Adapters:
    return Adapters(at, Memory(tensors), LoraSection(**config))


def merge(source: TensorSource, found: list[Adapters]) -> TensorSource:
    return merge_adapters(source, found, MODEL)


@pytest.mark.parametrize(
    ("place", "weight"),
    [
        ("self_attention.adapter_layer.lora_kqv_adapter", "self_attention.linear_qkv.weight"),
        ("self_attention.adapter_layer.lora_dense_attention_adapter", "self_attention.linear_proj.weight"),
        ("mlp.adapter_layer.lora_hto4h_adapter", "mlp.linear_fc1.weight"),
        ("mlp.adapter_layer.lora_4htoh_adapter", "mlp.linear_fc2.weight"),
        ("self_attention.linear_qkv.adapter", "self_attention.linear_qkv.weight"),
        ("self_attention.linear_proj.adapter", "self_attention.linear_proj.weight"),
        ("mlp.linear_fc1.adapter", "mlp.linear_fc1.weight"),
        ("mlp.linear_fc2.adapter", "mlp.linear_fc2.weight"),
    ],
)
@pytest.mark.parametrize("layer", [LAYER, LEGACY], ids=["mcore", "before"])
@pytest.mark.parametrize(("alpha", "factor"), [(2, 1.0), (32, 16.0), (1, 0.5)])
def test_the_scaled_product_is_added(place: str, weight: str, layer: str, alpha: float, factor: float) -> None:
    weights = {f"{LAYER}.{weight}": chance(16, 6)}
    both = pair(f"{layer}.{place}")
    merged = merge(Memory(weights), [adapters(both, alpha=alpha)])
    inward, outward = both.values()
    wanted = weights[f"{LAYER}.{weight}"] + factor * (outward.astype(np.float64) @ inward)
    np.testing.assert_allclose(merged.read(f"{LAYER}.{weight}"), wanted, rtol=1e-6, atol=1e-5)


def fused(query: Array, key: Array, value: Array) -> Array:
    """Megatron's order: per group its queries, its key, its value."""
    per_group = [part.reshape(GROUPS, -1, part.shape[-1]) for part in (query, key, value)]
    return np.concatenate(per_group, axis=1).reshape(-1, query.shape[-1])


def test_alpha_is_the_rank_where_nemo_1_names_none() -> None:
    source, both = base(), pair()
    inward, outward = both.values()
    merged = merge(Memory(source), [adapters(both)]).read(WEIGHT)
    np.testing.assert_allclose(merged, source[WEIGHT] + outward @ inward, rtol=1e-6, atol=1e-5)


ROWS = {"q": HEADS * SIZE, "k": GROUPS * SIZE, "v": GROUPS * SIZE, "gate": FFN, "up": FFN}


def parts_of(names: str, form: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Adapters of parts of a weight, and the change that each part gets."""
    tensors: dict[str, Array] = {}
    change: dict[str, Array] = {}
    for seed, name in enumerate(names.split()):
        both = pair(form.format(name), rank=RANK, rows=ROWS[name], seed=seed)
        tensors |= both
        change[name] = both[f"{form.format(name)}.linear_out.weight"] @ both[f"{form.format(name)}.linear_in.weight"]
    return tensors, change


UNFUSED = f"{LAYER}.self_attention.adapter_layer.lora_unfused_kqv_adapter.{{}}_adapter"
UNFUSED_FFN = f"{LAYER}.mlp.adapter_layer.lora_unfused_hto4h_adapter.{{}}_adapter"
CANONICAL = f"{LAYER}.self_attention.linear_qkv.adapter.adapter_{{}}"
CANONICAL_FFN = f"{LAYER}.mlp.linear_fc1.adapter.adapter_{{}}"


def test_queries_keys_and_values_change_the_rows_of_their_groups() -> None:
    tensors, change = parts_of("q k v", UNFUSED)
    source = base()
    merged = merge(Memory(source), [adapters(tensors, alpha=ALPHA)]).read(WEIGHT)
    wanted = source[WEIGHT] + ALPHA / RANK * fused(change["q"], change["k"], change["v"])
    np.testing.assert_allclose(merged, wanted, rtol=1e-6, atol=1e-4)


def test_a_part_alone_leaves_the_other_rows_as_they_are() -> None:
    tensors, change = parts_of("k", UNFUSED)
    source = base()
    merged = merge(Memory(source), [adapters(tensors)]).read(WEIGHT)
    none = np.zeros((HEADS * SIZE, HIDDEN), np.float32), np.zeros((GROUPS * SIZE, HIDDEN), np.float32)
    np.testing.assert_allclose(merged, source[WEIGHT] + fused(none[0], change["k"], none[1]), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("form", [UNFUSED_FFN, CANONICAL_FFN], ids=["first", "second"])
def test_a_gate_comes_before_the_other_half(form: str) -> None:
    tensors, change = parts_of("up gate", form)
    weight = f"{LAYER}.mlp.linear_fc1.weight"
    source = {weight: chance(2 * FFN, HIDDEN)}
    merged = merge(Memory(source), [adapters(tensors, alpha=ALPHA)]).read(weight)
    wanted = source[weight] + ALPHA / RANK * np.concatenate([change["gate"], change["up"]])
    np.testing.assert_allclose(merged, wanted, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("ranks", [1, 2])
def test_canonical_adapters_of_nemo_2_are_added_where_training_added_them(ranks: int) -> None:
    """Each rank puts its queries, keys and values one behind the other, onto rows that are per group."""
    tensors, change = parts_of("q k v", CANONICAL)
    parts = dict.fromkeys(tensors, ranks)
    source = base()
    found = Adapters("lora", Memory(tensors, parts=parts), LoraSection(alpha=ALPHA))
    merged = merge(Memory(source), [found]).read(WEIGHT)
    added = [np.concatenate([np.split(change[name], ranks)[rank] for name in ("q", "k", "v")]) for rank in range(ranks)]
    np.testing.assert_allclose(merged, source[WEIGHT] + ALPHA / RANK * np.concatenate(added), rtol=1e-6, atol=1e-4)
    grouped = fused(change["q"], change["k"], change["v"])
    # As many groups as ranks: the order is that of the names.
    assert np.allclose(np.concatenate(added), grouped) is (ranks == GROUPS)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("halved", [True, False], ids=["newer", "older"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_first_layer_of_nemo_2_is_stored_by_halves_or_by_ranks(ranks: int, *, halved: bool, gated: bool) -> None:
    rows = 2 * FFN if gated else FFN
    inward = chance(RANK, HIDDEN)
    held = [chance(rows // ranks, RANK, seed=rank) for rank in range(ranks)]
    firsts, seconds = [part[: len(part) // 2] for part in held], [part[len(part) // 2 :] for part in held]
    outward = np.concatenate([*firsts, *seconds] if halved else held)
    true = np.concatenate([*firsts, *seconds] if gated else held)
    name, weight = f"{LAYER}.mlp.linear_fc1.adapter", f"{LAYER}.mlp.linear_fc1.weight"
    tensors = {f"{name}.linear_in.weight": inward, f"{name}.linear_out.weight": outward}
    parts = {f"{name}.linear_in.weight": ranks, f"{name}.linear_out.weight": 2 * ranks if halved else ranks}
    source = {weight: chance(rows, HIDDEN)}
    config = MODEL if gated else LanguageConfig.model_validate(CONFIG | {"activation": "gelu"})
    found = Adapters("lora", Memory(tensors, parts=parts), LoraSection(alpha=RANK))
    merged = merge_adapters(Memory(source), [found], config).read(weight)
    np.testing.assert_allclose(merged, source[weight] + true @ inward, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("halved", [True, False], ids=["newer", "older"])
def test_a_canonical_gate_of_nemo_2_is_stored_by_halves_too(ranks: int, *, halved: bool) -> None:
    inward = chance(RANK, HIDDEN)
    held = [chance(FFN // ranks, RANK, seed=rank) for rank in range(ranks)]
    halves = [part[: len(part) // 2] for part in held] + [part[len(part) // 2 :] for part in held]
    name, weight = CANONICAL_FFN.format("gate"), f"{LAYER}.mlp.linear_fc1.weight"
    outward = np.concatenate(halves if halved else held)
    tensors = {f"{name}.linear_in.weight": inward, f"{name}.linear_out.weight": outward}
    parts = {f"{name}.linear_in.weight": ranks, f"{name}.linear_out.weight": 2 * ranks if halved else ranks}
    source = {weight: chance(2 * FFN, HIDDEN)}
    found = Adapters("lora", Memory(tensors, parts=parts), LoraSection(alpha=RANK))
    merged = merge(Memory(source), [found]).read(weight)
    np.testing.assert_allclose(merged[:FFN], source[weight][:FFN] + np.concatenate(held) @ inward, rtol=1e-6, atol=1e-5)
    assert np.array_equal(merged[FFN:], source[weight][FFN:])


def expert(number: int, layer: str = "linear_fc1") -> str:
    return f"{LAYER}.mlp.experts.local_experts.{number}.{layer}.weight"


def test_an_expert_uses_the_adapter_of_its_own_number() -> None:
    """NeMo 1 gives each the adapters of all; the others are never trained."""
    source = {expert(number): chance(16, 6, seed=number) for number in range(2)}
    own = f"{LAYER}.mlp.experts.local_experts.{{}}.adapter_layer.lora_moe_hto4h_adapter.expert_adapters.{{}}"
    both = [pair(own.format(e, other), seed=e + 2 * other) for e in range(2) for other in range(2)]
    tensors = {name: tensor for found in both for name, tensor in found.items()}
    merged = merge(Memory(source), [adapters(tensors)])
    for number in range(2):
        change = (
            tensors[f"{own.format(number, number)}.linear_out.weight"]
            @ tensors[f"{own.format(number, number)}.linear_in.weight"]
        )
        np.testing.assert_allclose(merged.read(expert(number)), source[expert(number)] + change, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("layer", ["linear_fc1", "linear_fc2"])
def test_experts_of_nemo_2_have_an_adapter_each_or_share_one(layer: str) -> None:
    source = {expert(number, layer): chance(16, 6, seed=number) for number in range(12)}
    each = pair(f"{LAYER}.mlp.experts.local_experts.11.{layer}.adapter")
    shared = pair(f"{LAYER}.mlp.experts.{layer}.adapter")
    alone = merge(Memory(source), [adapters(each, alpha=2)])
    all_of_them = merge(Memory(source), [adapters(shared, alpha=2)])
    first, second = each.values()
    for number in range(12):
        own = expert(number, layer)
        wanted = source[own] + second @ first
        np.testing.assert_allclose(all_of_them.read(own), wanted, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(alone.read(own), wanted if number == 11 else source[own], rtol=1e-6, atol=1e-5)


def test_all_other_tensors_stay_and_adapters_vanish_from_the_index() -> None:
    inside = base() | pair()
    merged = merge(Memory(inside), [adapters(inside)])
    assert list(merged.infos()) == [NORM, WEIGHT]
    assert np.array_equal(merged.read(NORM), inside[NORM])
    assert not np.array_equal(merged.read(WEIGHT), inside[WEIGHT])


def test_nothing_is_wrapped_without_adapters() -> None:
    source = Memory(base())
    assert merge(source, [adapters(base())]) is source


def test_a_projector_is_no_adapter() -> None:
    prefix = "model.embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector."
    source = Memory(base(**{f"{prefix}0.weight": chance(6, 6)}))
    assert merge(source, [Adapters("neva.nemo", source, LoraSection())]) is source


def test_a_sum_of_bfloat16_is_rounded_once() -> None:
    weights, both = Memory(base(), "BF16"), pair()
    merged = merge(weights, [Adapters("lora.nemo", Memory(both, "F32"), LoraSection())])
    inward, outward = both.values()
    wide = cast(weights.read(WEIGHT), source="BF16", target="F32") + outward @ inward
    assert merged.infos()[WEIGHT] == TensorInfo("BF16", (16, 6))
    assert np.array_equal(merged.read(WEIGHT), cast(wide, source="F32", target="BF16"))


def test_blocks_join_without_a_seam() -> None:
    rows = BLOCK + 8
    weights, both = {WEIGHT: chance(rows, 6)}, pair(rows=rows)
    inward, outward = both.values()
    merged = merge(Memory(weights), [adapters(both)]).read(WEIGHT)
    np.testing.assert_allclose(merged, weights[WEIGHT] + outward @ inward, rtol=1e-6, atol=1e-5)


TUNED = f"{LAYER}.mlp.adapter_layer"


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([adapters(pair(), "one"), adapters(pair(), "two")], "so does two"),
        ([adapters(pair(f"{TUNED}.lora_new_adapter"))], "no adapter that this version knows"),
        ([adapters({f"{TUNED}.mlp_infused_adapter.scalers": chance(6)})], "is IA3"),
        ([adapters(pair(f"{LAYER}.adapter_layer.adapter_1"))], "is a bottleneck adapter"),
        ([adapters({"model.embedding.adapter_layer.ptuning_adapter.inference_table": chance(6, 6)})], "is p-tuning"),
        ([adapters(pair(f"{LAYER}.inter_attention.adapter_layer.lora_kv_adapter"))], "LoRA of cross attention"),
        ([adapters({f"{LAYER}.mlp.linear_fc2.adapter.weight_magnitude": chance(6)})], "is DoRA"),
        ([adapters({f"{KQV}.position_embeddings.weight": chance(6)})], "that layers share"),
        ([adapters(pair("model.decoder.layers.7.mlp.adapter_layer.lora_hto4h_adapter"))], "layers.7.mlp.linear_fc1"),
        ([adapters(pair(f"{LAYER}.mlp.experts.linear_fc1.adapter"), alpha=1)], "local_experts.*.linear_fc1"),
        ([adapters(dict([next(iter(pair().items()))]))], "other half"),
        ([adapters(pair(rows=9))], "gives no change"),
        ([adapters(pair(columns=5))], "gives no change"),
        ([adapters(pair(UNFUSED.format("k")))], "gives no change of 4 rows"),
        ([adapters(pair() | parts_of("q", UNFUSED)[0])], "two adapters change the same rows"),
        ([adapters(pair(), adapter_dim=4)], "is 4, but the adapters have rank 2"),
        ([adapters(pair(f"{LAYER}.self_attention.linear_qkv.adapter"))], "how the adapters were scaled"),
        ([adapters({name: chance(3) for name in pair()})], "are no matrices"),
        ([Adapters("lora.nemo", Memory(pair(), "I16"), LoraSection())], "cannot be summed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(found: list[Adapters], says: str) -> None:
    with pytest.raises(ProductError) as caught:
        merge(Memory(base()), found)
    failure = caught.value.failure
    assert says in failure.problem
    assert (failure.reason, bool(failure.at and failure.remedy)) == (Reason.CHECKPOINT_WEIGHTS, True)


def test_a_weight_that_is_no_whole_heads_has_no_queries() -> None:
    with pytest.raises(ProductError, match="is no adapter of"):
        merge(Memory({WEIGHT: chance(17, 6)}), [adapters(parts_of("q", UNFUSED)[0])])
