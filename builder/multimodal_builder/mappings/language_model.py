"""A language model as transformers knows it: its configuration, its parameters, and the way to them."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from multimodal_builder.mappings import megatron
from multimodal_builder.mappings.base import parameters_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_builder.checkpoints.config import LanguageConfig
    from multimodal_builder.mappings.base import Rule, Shape

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """Everything that a conversion needs to know of one language model."""

    config: JsonObject
    """`llm/config.json` for transformers 5, without the type of the weights and the ids of the tokenizer."""
    rules: tuple[Rule, ...]
    """From Megatron-core's names, one entry per layer and expert."""
    parameters: dict[str, Shape]
    """Names and shapes of everything that transformers' class loads."""
    layers: int
    hidden: int
    heads: int
    groups: int
    """Key/value heads."""
    head_size: int
    rows: int
    """Of the embedding: the tokenizer's size and padding."""
    tied: bool
    """Whether the head is the embedding."""


class Requirement(NamedTuple):
    """What one key of the configuration must be, so that an architecture can hold the model."""

    key: str
    holds: Callable[[LanguageConfig], bool]
    needs: str
    """The values it can hold, for people."""

    def value(self, config: LanguageConfig) -> object:
        """Give the key's value."""
        return attrgetter(self.key)(config)


def one_of(key: str, allowed: tuple[object, ...]) -> Requirement:
    """Require one of some values."""
    value = attrgetter(key)
    return Requirement(key, lambda config: value(config) in allowed, " or ".join(map(repr, allowed)))


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

    def broken(self, config: LanguageConfig) -> tuple[Requirement, ...]:
        """List what keeps it from holding a model."""
        return tuple(requirement for requirement in self.requirements if not requirement.holds(config))

    def build(self, config: LanguageConfig, *, rows: int) -> LanguageModel:
        """Put everything together.

        Args:
            config: NeMo's.
            rows: Of the embedding, padding included.
        """
        rules = self.rules(config)
        tied = config.share_embeddings_and_output_weights
        common = {"architectures": [self.name], "vocab_size": rows, "tie_word_embeddings": tied}
        return LanguageModel(
            config=common | self.describe(config),
            rules=rules,
            parameters=parameters_of(rules, megatron.tensors(config, rows=rows)),
            layers=config.num_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            groups=config.groups,
            head_size=config.head_size,
            rows=rows,
            tied=tied,
        )
