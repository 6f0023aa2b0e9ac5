"""One new token for each of several sequences in one forward pass, each result as if the sequence were alone.

Batching changes numbers in two ways: a matrix product adds up in another order when it has another number of rows, and
attention does when keys are padded to the longest sequence. So a pass here always has the same number of rows, idle
ones filled up, and attention looks at every row's own keys by itself, in the shape of that row alone. An expert of a
mixture takes all rows, not only those that chose it.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.cache_utils import Cache
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from multimodal_modeling.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from multimodal_modeling.kv import KvPool, SequenceCache

NAME: Final = "multimodal_rows"
"""Of the attention and of the experts, for transformers."""
_NOW: Final[ContextVar[Rows | None]] = ContextVar("rows", default=None)
"""What the running pass is for: not every model hands unknown arguments on to its attention."""


class Rows(Cache):
    """The caches of some sequences, for a pass that gives each of them one position."""

    def __init__(self, pool: KvPool, caches: Sequence[SequenceCache]) -> None:
        super().__init__(layers=[])
        self._pool = pool
        self.spans = [(cache.place.start, cache.place.start + cache.length + 1) for cache in caches]
        self._written = torch.tensor([end - 1 for _, end in self.spans], device=pool.keys[0].device)

    def __len__(self) -> int:
        """Count the layers: transformers takes a cache of none for no cache."""
        return len(self._pool.keys)

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Let attention be row by row."""
        before = _NOW.set(self)
        try:
            yield
        finally:
            _NOW.reset(before)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write each sequence's new position: [rows, heads, 1, size]; `attend` reads them from the pool."""
        count = len(self.spans)
        for states, store in ((key_states, self._pool.keys), (value_states, self._pool.values)):
            store[layer_idx][0].index_copy_(1, self._written, states[:count, :, 0].transpose(0, 1))
        return key_states, value_states

    def attend(self, layer: int, query: Tensor, *, scaling: float | None, window: int | None) -> Tensor:
        """Let each row look at its own sequence.

        Args:
            layer: Its index.
            query: [rows, heads, 1, size].
            scaling: Of the scores.
            window: How many positions a row sees at most, itself included.

        Returns:
            [rows, 1, heads, size], zero in idle rows.
        """
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        rows, heads, _, size = query.shape
        groups = keys.shape[1]
        grouped = query.reshape(rows, groups, heads // groups, size)  # the heads that share keys as if new positions
        seen = []
        with Threads() as threads:
            for one, (begin, end) in zip(grouped.chunk(rows), self.spans, strict=False):  # idle rows see nothing
                first = begin if window is None else max(begin, end - window)
                threads.share(elements=2 * (end - first) * groups * size, rows=heads // groups)
                seen.append(
                    scaled_dot_product_attention(one, keys[:, :, first:end], values[:, :, first:end], scale=scaling)
                )
        seen.append(grouped.new_zeros(rows - len(seen), groups, heads // groups, size))
        return torch.cat(seen).reshape(rows, 1, heads, size)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 -- transformers' signature
        """Say nothing: the rows differ, and positions are given to the pass."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002 -- the same
        """Need no mask: a row sees all of its own sequence."""
        return query_length, 0


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,  # noqa: ANN401 -- transformers' own
) -> tuple[Tensor, None]:
    """Attend as transformers does by default, or row by row."""
    rows = _NOW.get()
    if rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **kwargs
        )
    layer: Any = module.layer_idx
    return rows.attend(layer, query, scaling=scaling, window=sliding_window), None


def _experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:  # noqa: ANN401
    """Apply a mixture's experts: [positions, hidden] → [positions, hidden].

    Args:
        module: Transformers' own, of any mixture with gated experts.
        hidden_states: [positions, hidden].
        top_k_index: [positions, k], the experts chosen.
        top_k_weights: [positions, k], their shares.
    """
    rows = _NOW.get()
    if rows is None:
        given: Tensor = grouped_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
        return given
    mixed = torch.zeros_like(hidden_states)
    for expert in torch.unique(top_k_index[: len(rows.spans)]).tolist():
        share = (top_k_weights * (top_k_index == expert)).sum(-1, keepdim=True)
        inner = module._apply_gate(linear(hidden_states, module.gate_up_proj[expert]))  # noqa: SLF001
        mixed += (linear(inner, module.down_proj[expert]) * share).to(mixed.dtype)
    return mixed


ALL_EXPERTS_FUNCTIONS.register(NAME, _experts)
AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
