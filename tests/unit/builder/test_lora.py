"""Which adapters are merged, and every way in which they do not fit; the sums against numpy's in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.casts import cast
from multimodal_builder.checkpoints.config import LoraSection
from multimodal_builder.checkpoints.tensors import TensorInfo
from multimodal_builder.lora import BLOCK, Adapters, merge_adapters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_builder.checkpoints.tensors import Array

LAYER = "model.decoder.layers.0"
LEGACY = "model.language_model.encoder.layers.0"
KQV = f"{LAYER}.self_attention.adapter_layer.lora_kqv_adapter"
WEIGHT = f"{LAYER}.self_attention.linear_qkv.weight"
NORM = "model.decoder.final_layernorm.weight"


class Memory:
    """Tensors in memory; float32, or stored as bfloat16."""

    def __init__(self, tensors: Mapping[str, Array], dtype: str = "F32") -> None:
        self.tensors = {name: cast(array, source="F32", target=dtype) for name, array in tensors.items()}
        self.dtype = dtype

    def infos(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(self.dtype, array.shape) for name, array in self.tensors.items()}

    def read(self, name: str) -> Array:
        return self.tensors[name]


def chance(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def base(**tensors: Array) -> dict[str, Array]:
    return {NORM: chance(6), WEIGHT: chance(8, 6), **tensors}


def pair(name: str = KQV, *, rank: int = 2, rows: int = 8, columns: int = 6) -> dict[str, Array]:
    return {f"{name}.linear_in.weight": chance(rank, columns), f"{name}.linear_out.weight": chance(rows, rank)}


def adapters(tensors: Mapping[str, Array], at: str = "lora.nemo", **config: Any) -> Adapters:
    return Adapters(at, Memory(tensors), LoraSection(**config))


@pytest.mark.parametrize(
    ("place", "weight"),
    [
        ("self_attention.adapter_layer.lora_kqv_adapter", "self_attention.linear_qkv.weight"),
        ("self_attention.adapter_layer.lora_dense_attention_adapter", "self_attention.linear_proj.weight"),
        ("mlp.adapter_layer.lora_hto4h_adapter", "mlp.linear_fc1.weight"),
        ("mlp.adapter_layer.lora_4htoh_adapter", "mlp.linear_fc2.weight"),
    ],
)
@pytest.mark.parametrize("layer", [LAYER, LEGACY], ids=["mcore", "before"])
@pytest.mark.parametrize(("alpha", "factor"), [(None, 1.0), (2, 1.0), (32, 16.0), (1, 0.5)])
def test_the_scaled_product_is_added(place: str, weight: str, layer: str, alpha: float | None, factor: float) -> None:
    weights = {f"{LAYER}.{weight}": chance(8, 6)}
    both = pair(f"{layer}.{place}")
    merged = merge_adapters(Memory(weights), [adapters(both, alpha=alpha)])
    inward, outward = both.values()
    wanted = weights[f"{LAYER}.{weight}"] + factor * (outward.astype(np.float64) @ inward)
    np.testing.assert_allclose(merged.read(f"{LAYER}.{weight}"), wanted, rtol=1e-6, atol=1e-5)


def test_all_other_tensors_stay_and_adapters_vanish_from_the_index() -> None:
    inside = base() | pair()
    merged = merge_adapters(Memory(inside), [adapters(inside)])
    assert list(merged.infos()) == [NORM, WEIGHT]
    assert np.array_equal(merged.read(NORM), inside[NORM])
    assert not np.array_equal(merged.read(WEIGHT), inside[WEIGHT])


def test_nothing_is_wrapped_without_adapters() -> None:
    source = Memory(base())
    assert merge_adapters(source, [adapters(base())]) is source


def test_a_sum_of_bfloat16_is_rounded_once() -> None:
    weights, both = Memory(base(), "BF16"), pair()
    merged = merge_adapters(weights, [Adapters("lora.nemo", Memory(both, "F32"), LoraSection())])
    inward, outward = both.values()
    wide = cast(weights.read(WEIGHT), source="BF16", target="F32") + outward @ inward
    assert merged.infos()[WEIGHT] == TensorInfo("BF16", (8, 6))
    assert np.array_equal(merged.read(WEIGHT), cast(wide, source="F32", target="BF16"))


def test_blocks_join_without_a_seam() -> None:
    rows = BLOCK + 3
    weights, both = {WEIGHT: chance(rows, 6)}, pair(rows=rows)
    inward, outward = both.values()
    merged = merge_adapters(Memory(weights), [adapters(both)]).read(WEIGHT)
    np.testing.assert_allclose(merged, weights[WEIGHT] + outward @ inward, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([adapters(pair(), "one"), adapters(pair(), "two")], "so does two"),
        ([adapters(pair(f"{LAYER}.mlp.adapter_layer.lora_moe_hto4h_adapter"))], "no adapter that this version knows"),
        ([adapters(pair("model.decoder.layers.7.mlp.adapter_layer.lora_hto4h_adapter"))], "layers.7.mlp.linear_fc1"),
        ([adapters(dict([next(iter(pair().items()))]))], "other half"),
        ([adapters(pair(rows=9))], "gives no change"),
        ([adapters(pair(columns=5))], "gives no change"),
        ([adapters(pair(), adapter_dim=4)], "is 4, but the adapters have rank 2"),
        ([Adapters("lora.nemo", Memory(pair(), "I16"), LoraSection())], "cannot be summed"),
    ],
    ids=["twice", "unknown", "no weight", "one half", "rows", "columns", "rank", "type"],
)
def test_what_does_not_fit_is_refused(found: list[Adapters], says: str) -> None:
    with pytest.raises(ProductError) as caught:
        merge_adapters(Memory(base()), found)
    failure = caught.value.failure
    assert says in failure.problem
    assert (failure.reason, bool(failure.at and failure.remedy)) == (Reason.CHECKPOINT_WEIGHTS, True)
