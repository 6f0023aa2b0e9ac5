"""LoRA adapters as NeMo names them: which weight each changes, and which of its rows.

An adapter is a pair of matrices: `linear_in` A of [rank, inputs] and `linear_out` B of [outputs, rank]. What stands
between the layer's number and the pair decides the rest. Sources of the names and orders: NeMo's
`nlp/modules/common/megatron/adapters` (version 1) and `llm/peft` (version 2).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection

Rows = np.ndarray[Any, np.dtype[np.int64]]


class Part(StrEnum):
    """Which rows of a weight an adapter changes."""

    WHOLE = "whole"
    QUERY = "query"
    """Of the fused attention input, as the next two."""
    KEY = "key"
    VALUE = "value"
    GATE = "gate"
    """Of a gated first layer: the rows that go through the activation."""
    UP = "up"


class Kind(NamedTuple):
    """One of NeMo's adapters; `{e}` is an expert's number, `*` all of them."""

    name: str
    weight: str
    part: Part = Part.WHOLE
    second: bool = False
    """Whether it is NeMo 2's."""


_ATTENTION: Final = "self_attention.adapter_layer"
_FEED_FORWARD: Final = "mlp.adapter_layer"
_EXPERT: Final = "mlp.experts.local_experts.{e}"
_MOE: Final = f"{_EXPERT}.adapter_layer.lora_moe"

FIRST: Final = (
    Kind(f"{_ATTENTION}.lora_kqv_adapter", "self_attention.linear_qkv"),
    Kind(f"{_ATTENTION}.lora_unfused_kqv_adapter.q_adapter", "self_attention.linear_qkv", Part.QUERY),
    Kind(f"{_ATTENTION}.lora_unfused_kqv_adapter.k_adapter", "self_attention.linear_qkv", Part.KEY),
    Kind(f"{_ATTENTION}.lora_unfused_kqv_adapter.v_adapter", "self_attention.linear_qkv", Part.VALUE),
    Kind(f"{_ATTENTION}.lora_dense_attention_adapter", "self_attention.linear_proj"),
    Kind(f"{_FEED_FORWARD}.lora_hto4h_adapter", "mlp.linear_fc1"),
    Kind(f"{_FEED_FORWARD}.lora_unfused_hto4h_adapter.gate_adapter", "mlp.linear_fc1", Part.GATE),
    Kind(f"{_FEED_FORWARD}.lora_unfused_hto4h_adapter.up_adapter", "mlp.linear_fc1", Part.UP),
    Kind(f"{_FEED_FORWARD}.lora_4htoh_adapter", "mlp.linear_fc2"),
    Kind(f"{_MOE}_hto4h_adapter.expert_adapters.{{e}}", f"{_EXPERT}.linear_fc1"),
    Kind(f"{_MOE}_4htoh_adapter.expert_adapters.{{e}}", f"{_EXPERT}.linear_fc2"),
)
"""NeMo 1's."""

IDLE: Final = re.compile(
    r"model\.decoder\.layers\.\d+\.mlp\.experts\.local_experts\.(?P<e>\d+)"
    r"\.adapter_layer\.lora_moe_\w+_adapter\.expert_adapters\.(?!(?P=e)\.)\d+\.linear_(?:in|out)\.weight"
)
"""NeMo 1 gives every expert the adapters of all experts; an expert uses the one of its own number."""


def _second(layer: str, weight: str | None = None) -> tuple[Kind, ...]:
    parts: dict[str, dict[str, Part]] = {
        "linear_qkv": {"adapter_q": Part.QUERY, "adapter_k": Part.KEY, "adapter_v": Part.VALUE},
        "linear_fc1": {"adapter_gate": Part.GATE, "adapter_up": Part.UP},
    }
    whole = Kind(f"{layer}.adapter", weight or layer, second=True)
    apart = parts.get(layer.rpartition(".")[2], {})
    return whole, *(Kind(f"{layer}.adapter.{name}", whole.weight, part, second=True) for name, part in apart.items())


SECOND: Final = (
    *_second("self_attention.linear_qkv"),
    *_second("self_attention.linear_proj"),
    *_second("mlp.linear_fc1"),
    *_second("mlp.linear_fc2"),
    *_second(f"{_EXPERT}.linear_fc1"),
    *_second(f"{_EXPERT}.linear_fc2"),
    # Experts whose matrices are multiplied together share one adapter.
    *_second("mlp.experts.linear_fc1", "mlp.experts.local_experts.*.linear_fc1"),
    *_second("mlp.experts.linear_fc2", "mlp.experts.local_experts.*.linear_fc2"),
)
"""NeMo 2's; those with a part of a weight are canonical LoRA's."""

REFUSED: Final = (
    (re.compile(r"\.weight_magnitude\b"), "DoRA"),
    (re.compile(r"_infused_adapter\."), "IA3"),
    (re.compile(r"\.adapter_layer\.adapter_[12]\."), "a bottleneck adapter"),
    (re.compile(r"\.ptuning_adapter\."), "p-tuning"),
    (re.compile(r"\.mlp_head_adapter\."), "another head"),
    (re.compile(r"\.lora_(?:q|kv)_adapter\."), "LoRA of cross attention"),
    (re.compile(r"\.position_embeddings\b"), "LoRA with weights that layers share"),
)
"""What else NeMo trains beside a model, by its name; none of it is a sum of weights of these models."""

_ADAPTER: Final = re.compile(r"model\.(?!embedding\.word_embeddings\.)(?:.*\.)?(?:adapter_layer|adapter)\..*")
"""Of any kind. In front of the word embedding stand the components that see."""


class Half(NamedTuple):
    """One of an adapter's two matrices."""

    adapter: str
    """The name of both, as far as it is the same."""
    side: str
    """`in` or `out`."""
    kind: Kind
    weight: str
    """What it changes; `*` is every expert."""

    @property
    def fans_out(self) -> bool:
        """Whether tensor-parallel ranks share the rows of A, not its columns."""
        return self.kind.weight.endswith(("linear_qkv", "linear_fc1"))


def _compiled(kind: Kind) -> re.Pattern[str]:
    first, *others = re.escape(kind.name).split(re.escape("{e}"))
    name = first + "".join((r"(?P<e>\d+)" if number == 0 else "(?P=e)") + other for number, other in enumerate(others))
    layer = r"model\.(?:decoder|language_model\.encoder)\.layers\.(?P<n>\d+)"
    return re.compile(rf"(?P<adapter>{layer}\.{name})\.linear_(?P<side>in|out)\.weight")


_PATTERNS: Final = tuple((_compiled(kind), kind) for kind in (*FIRST, *SECOND))


def is_adapter(name: str) -> bool:
    """Tell whether a tensor belongs to an adapter, of whatever kind, of a language model."""
    return _ADAPTER.fullmatch(name) is not None


def find_half(name: str) -> Half | None:
    """Read the name of a tensor; None is no LoRA that is known here."""
    for pattern, kind in _PATTERNS:
        if (match := pattern.fullmatch(name)) is not None:
            found = match.groupdict()
            weight = kind.weight.replace("{e}", found.get("e") or "")
            return Half(match["adapter"], match["side"], kind, f"model.decoder.layers.{match['n']}.{weight}.weight")
    return None


def weights_of(half: Half, weights: Collection[str]) -> list[str]:
    """List the weights that an adapter changes; the one it names, where that has no `*`."""
    if "*" not in half.weight:
        return [half.weight]
    pattern = re.compile(re.escape(half.weight).replace(re.escape("*"), r"\d+"))
    return [name for name in weights if pattern.fullmatch(name)] or [half.weight]


class Layout(NamedTuple):
    """What decides the order of an adapter's rows, beside its kind."""

    heads: int
    """Of queries."""
    groups: int
    """Key/value heads. Rows of a fused attention input are, per group, its queries, its key, its value."""
    gated: bool
    """Whether the first layer of a feed-forward block has a gate."""
    ranks: int = 1
    """Tensor-parallel ranks that wrote NeMo 2's distributed form, which shared the rows of A."""
    runs: int = 1
    """Parts that they stored the rows of B in."""


def rows_of(kind: Kind, total: int, layout: Layout) -> Rows:
    """List the rows of a weight that the rows of B change, in B's order.

    Args:
        kind: Of the adapter.
        total: Rows of the weight.
        layout: Of the model, and of how training stored the adapter.

    Raises:
        ValueError: the weight cannot be cut so.
    """
    every = np.arange(total, dtype=np.int64)
    if kind.second and kind.part in _ATTENTION_PARTS:
        return _as_added(every, kind.part, layout)
    own = _own_rows(every, kind.part, layout)
    if kind.second and layout.ranks > 1 and kind.weight.endswith("linear_fc1"):
        return _as_stored(own, fused=layout.gated and kind.part is Part.WHOLE, layout=layout)
    return own


_ATTENTION_PARTS: Final = (Part.QUERY, Part.KEY, Part.VALUE)


def _own_rows(every: Rows, part: Part, layout: Layout) -> Rows:
    """Choose the rows that a part is made of."""
    if part is Part.WHOLE:
        return every
    if part in {Part.GATE, Part.UP}:
        gate, up = np.split(every, 2)
        return gate if part is Part.GATE else up
    grouped = every.reshape(layout.groups, layout.heads // layout.groups + 2, -1)
    chosen = {Part.QUERY: slice(0, -2), Part.KEY: slice(-2, -1), Part.VALUE: slice(-1, None)}[part]
    return grouped[:, chosen].reshape(-1)


def _as_added(every: Rows, part: Part, layout: Layout) -> Rows:
    """Choose the rows that NeMo 2's canonical LoRA adds queries, keys or values to.

    It puts the three outputs of a rank behind one another, and adds them to the fused output, whose rows are per group.
    That is what was trained, whatever the names say; with one group per rank it is the same.
    """
    size, left = divmod(len(every), layout.heads + 2 * layout.groups)
    if left:
        raise ValueError(f"{len(every)} rows are no whole heads")
    counts = [heads * size // layout.ranks for heads in (layout.heads, layout.groups, layout.groups)]
    place = _ATTENTION_PARTS.index(part)
    start = sum(counts[:place])
    return every.reshape(layout.ranks, -1)[:, start : start + counts[place]].reshape(-1)


def _as_stored(rows: Rows, *, fused: bool, layout: Layout) -> Rows:
    """Put rows of a first layer into the order in which NeMo 2 stored those of B.

    Each rank computes its part of the gate and its part of the other half. Newer versions store the first halves of all
    ranks, then the second ones, also where the rows are those of one part alone; older ones store rank by rank.
    """
    halved = layout.runs == 2 * layout.ranks
    if fused and not halved:
        return rows.reshape(2, layout.ranks, -1).swapaxes(0, 1).reshape(-1)
    if halved and not fused:
        return rows.reshape(layout.ranks, 2, -1).swapaxes(0, 1).reshape(-1)
    return rows
