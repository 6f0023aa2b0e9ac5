"""A language model as transformers knows it: its configuration, its parameters, and the way to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from multimodal_builder.mappings import megatron
from multimodal_builder.mappings.base import parameters_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_builder.checkpoints.config import LanguageConfig
    from multimodal_builder.mappings.base import Rule, Shape
    from multimodal_builder.mappings.requirements import Requirement

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """Everything that a conversion needs to know of one language model."""

    config: JsonObject
    """`llm/config.json` for transformers 5, without the type of the weights and the ids of the tokenizer."""
    rules: tuple[Rule, ...]
    """From Megatron-core's names, one entry per layer and expert."""
    parameters: dict[str, Shape]
    """Names and shapes of everything that a checkpoint of transformers' class holds."""
    layers: int
    hidden: int
    ffn: int
    """Inner width of the feed-forward block, of one expert where there are several."""
    heads: int
    groups: int
    """Key/value heads."""
    head_size: int
    rows: int
    """Of the embedding: the tokenizer's size and padding."""
    positions: int
    """Longest sequence."""
    tied: bool
    """Whether the head is the embedding."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One of transformers' classes, as tables."""

    name: str
    """Of the class."""
    requirements: tuple[Requirement, ...]
    """Which of NeMo's models it can hold."""
    rules: Callable[[LanguageConfig], tuple[Rule, ...]]
    describe: Callable[[LanguageConfig], JsonObject]
    """Its `config.json`, without what all classes share."""
    positions_key: str = "max_position_embeddings"
    """Of the longest sequence in its `config.json`."""

    def broken(self, config: LanguageConfig) -> tuple[Requirement, ...]:
        """List what keeps it from holding a model."""
        return tuple(requirement for requirement in self.requirements if not requirement.holds(config))

    def build(self, config: LanguageConfig, *, rows: int, positions: int | None = None) -> LanguageModel:
        """Put everything together.

        Args:
            config: NeMo's.
            rows: Of the embedding, padding included.
            positions: Rows of the table of positions, where there is one.
        """
        rules = self.rules(config)
        tied = config.share_embeddings_and_output_weights
        longest = positions or config.positions
        common = {
            "architectures": [self.name],
            "vocab_size": rows,
            self.positions_key: longest,
            "tie_word_embeddings": tied,
        }
        return LanguageModel(
            config=common | self.describe(config),
            rules=rules,
            parameters=parameters_of(rules, megatron.tensors(config, rows=rows, positions=longest)),
            layers=config.num_layers,
            hidden=config.hidden_size,
            ffn=config.ffn_hidden_size,
            heads=config.num_attention_heads,
            groups=config.groups,
            head_size=config.head_size,
            rows=rows,
            positions=longest,
            tied=tied,
        )
