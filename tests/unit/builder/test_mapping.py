from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_builder.casts import cast
from multimodal_builder.checkpoints.tensors import TensorInfo
from multimodal_builder.mappings.base import (
    Ignore,
    Mapped,
    Offset,
    Rename,
    SplitGated,
    SplitQkv,
    Transpose,
    TransposeQkv,
    interpret,
)
from multimodal_builder.mappings.language_model import LanguageModel
from multimodal_builder.mappings.llama import LLAMA
from support.settings import model_config

Array = np.ndarray[Any, np.dtype[Any]]

MODEL = LLAMA.build(model_config(), rows=16)


def qkv(heads: int, groups: int) -> SplitQkv:
    return SplitQkv("qkv", query="q", key="k", value="v", heads=heads, groups=groups)


def fuse(query: Array, key: Array, value: Array, groups: int) -> Array:
    """Megatron's order, written down group by group."""
    parts: list[Array] = []
    for q, k, v in zip(*(np.split(part, groups) for part in (query, key, value)), strict=True):
        parts += [q, k, v]
    return np.concatenate(parts)


@given(
    groups=st.integers(1, 4),
    per_group=st.integers(1, 4),
    size=st.integers(1, 5),
    width=st.integers(1, 3),
    dtype=st.sampled_from([np.float32, np.uint16]),
)
def test_splitting_undoes_fusing(groups: int, per_group: int, size: int, width: int, dtype: type) -> None:
    heads = groups * per_group
    numbers = np.arange((heads + 2 * groups) * size * width).astype(dtype).reshape(-1, width)
    query, key, value = np.split(numbers, [heads * size, (heads + groups) * size])
    rule = qkv(heads, groups)
    fused = fuse(query, key, value, groups)
    split = rule.apply(fused)
    for found, wanted in zip(split, (query, key, value), strict=True):
        np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)
    announced = [shape for _, shape in rule.targets(TensorInfo("F32", fused.shape))]
    assert announced == [query.shape, key.shape, value.shape]


@given(rows=st.integers(1, 6), width=st.integers(1, 3))
def test_the_gate_comes_first(rows: int, width: int) -> None:
    gate = np.arange(rows * width).reshape(rows, width)
    up = gate + 1000
    rule = SplitGated("fc1", gate="g", up="u")
    found = rule.apply(np.concatenate([gate, up]))
    np.testing.assert_array_equal(found[0], gate)
    np.testing.assert_array_equal(found[1], up)


@given(heads=st.integers(1, 4), size=st.integers(1, 4), width=st.integers(1, 3), dtype=st.sampled_from(["<f4", "<u2"]))
def test_gpt2_has_all_queries_all_keys_all_values_and_rows_for_columns(
    heads: int, size: int, width: int, dtype: str
) -> None:
    numbers = np.arange(3 * heads * size * width).astype(dtype).reshape(-1, width)
    rule = TransposeQkv("qkv", "c_attn", heads=heads)
    for array in (numbers, numbers[:, 0]):
        (found,) = rule.apply(fuse(*np.split(array, 3), heads))
        ((_, shape),) = rule.targets(TensorInfo("F32", array.shape))
        assert shape == array.T.shape
        np.testing.assert_array_equal(found.ravel(), array.T.ravel())  # in C order


def test_transposing_leaves_biases_alone() -> None:
    matrix = np.arange(6).reshape(2, 3)
    rule = Transpose("fc", "c_fc")
    (turned,) = rule.apply(matrix)
    (bias,) = rule.apply(matrix[0])
    np.testing.assert_array_equal(turned, [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(bias, matrix[0])
    assert rule.targets(TensorInfo("F32", (2, 3))) == (("c_fc", (3, 2)),)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_an_offset_is_added_in_every_type(dtype: str) -> None:
    values = np.array([0.5, 1.0, 1.25, -3.0], np.float32)
    (found,) = Offset("norm", "norm", by=-1.0).apply(cast(values, source="F32", target=dtype))
    np.testing.assert_array_equal(cast(found, source=dtype, target="F32"), values - 1)


def test_experts_have_numbers_of_their_own() -> None:
    rules = (Rename("l.{n}.e.{e}.w", "m.{n}.x.{e}.v"),)
    index = {f"l.{n}.e.{e}.w": TensorInfo("F32", (1,)) for n in range(2) for e in (0, 11)}
    wanted: dict[str, tuple[int, ...]] = {f"m.{n}.x.{e}.v": (1,) for n in range(2) for e in (0, 11)}
    result = interpret(rules, index, wanted)
    assert (result.unknown, result.missing, result.wrong) == ((), (), ())


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (qkv(4, 2), (15, 8)),
        (qkv(4, 3), (20, 8)),
        (SplitGated("x", gate="g", up="u"), (5, 2)),
        (TransposeQkv("x", "y", heads=2), (9, 8)),
    ],
    ids=["no whole heads", "heads not shared out evenly", "no two halves", "no whole heads of GPT-2"],
)
def test_impossible_shapes_are_refused(rule: SplitQkv | SplitGated | TransposeQkv, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rows"):
        rule.targets(TensorInfo("F32", shape))


def infos(model: LanguageModel) -> dict[str, TensorInfo]:
    """A checkpoint's index that fits exactly."""
    layer = {
        "self_attention.linear_qkv.layer_norm_weight": (8,),
        "self_attention.linear_qkv.weight": (16, 8),
        "self_attention.linear_proj.weight": (8, 8),
        "mlp.linear_fc1.layer_norm_weight": (8,),
        "mlp.linear_fc1.weight": (24, 8),
        "mlp.linear_fc2.weight": (8, 12),
    }
    names = {
        f"model.decoder.layers.{number}.{name}": size for number in range(model.layers) for name, size in layer.items()
    }
    outer = {
        "model.embedding.word_embeddings.weight": (16, 8),
        "model.decoder.final_layernorm.weight": (8,),
        "model.output_layer.weight": (16, 8),
    }
    return {name: TensorInfo("F32", size) for name, size in (outer | names).items()}


def mapped(index: dict[str, TensorInfo]) -> Mapped:
    return interpret(MODEL.rules, index, MODEL.parameters)


def test_a_whole_llama_leaves_nothing_over() -> None:
    result = mapped(infos(MODEL))
    assert (result.unknown, result.missing, result.wrong) == ((), (), ())
    written = {name: info.shape for step in result.steps for name, info in step.targets}
    assert written == MODEL.parameters
    assert result.nbytes == sum(info.nbytes for info in infos(MODEL).values())


def test_steps_follow_the_checkpoints_order() -> None:
    index = infos(MODEL)
    assert [step.source for step in mapped(index).steps] == list(index)


def test_the_local_specs_spelling_of_norms_is_known() -> None:
    index = {
        name.replace("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight").replace(
            "mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"
        ): info
        for name, info in infos(MODEL).items()
    }
    assert mapped(index).missing == ()


@pytest.mark.parametrize("dropped", list(infos(MODEL)))
def test_a_missing_tensor_is_missed(dropped: str) -> None:
    index = infos(MODEL)
    del index[dropped]
    result = mapped(index)
    assert result.missing
    assert not result.unknown


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "says"),
    [
        ("model.decoder.layers.2.mlp.linear_fc2.weight", "F32", (8, 12), "which the model does not have"),
        ("model.decoder.layers.0.mlp.linear_fc2.weight", "F32", (8, 13), "of shape [8, 13], the model has [8, 12]"),
        ("model.decoder.layers.0.mlp.linear_fc2.weight", "I64", (8, 12), "no type of weights"),
        ("model.decoder.layers.0.input_layernorm.weight", "F32", (8,), "both set"),
        ("model.decoder.layers.0.self_attention.linear_qkv.weight", "F32", (15, 8), "no whole heads"),
    ],
)
def test_a_wrong_tensor_is_named(name: str, dtype: str, shape: tuple[int, ...], says: str) -> None:
    index = infos(MODEL) | {name: TensorInfo(dtype, shape)}
    (sentence,) = mapped(index).wrong
    assert name in sentence
    assert says in sentence


@pytest.mark.parametrize("name", ["model.decoder.layers.00.mlp.linear_fc2.weight", "model.unheard.of", "x.y"])
def test_a_tensor_nobody_takes_is_left_over(name: str) -> None:
    assert mapped(infos(MODEL) | {name: TensorInfo("F32", (1,))}).unknown == (name,)


def test_ignored_tensors_are_neither_read_nor_left_over() -> None:
    index = infos(MODEL) | {
        "model.decoder.layers.0.mlp.linear_fc1._extra_state": TensorInfo("U8", (4,)),
        "model.rotary_pos_emb.inv_freq": TensorInfo("F32", (4,)),
    }
    result = mapped(index)
    assert result.unknown == ()
    assert len(result.steps) == len(infos(MODEL))


def test_every_ignored_pattern_says_why() -> None:
    assert all(rule.why for rule in MODEL.rules if isinstance(rule, Ignore))


def test_the_first_rule_that_matches_takes_a_tensor() -> None:
    rules = (Rename("a.{n}.w", "b.{n}.w"), Ignore("a.*", why="the rest"))
    result = interpret(rules, {"a.7.w": TensorInfo("F16", (1,)), "a.x": TensorInfo("F16", (1,))}, {"b.7.w": (1,)})
    assert [target for step in result.steps for target, _ in step.targets] == ["b.7.w"]
    assert (result.unknown, result.missing, result.wrong) == ((), (), ())


def test_a_tied_head_is_no_parameter() -> None:
    tied = LLAMA.build(model_config(share_embeddings_and_output_weights=True), rows=16)
    assert "lm_head.weight" not in tied.parameters
