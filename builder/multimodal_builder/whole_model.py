"""A model that comes as Hugging Face's kind of folder, with all its parts, whatever the layout; and its plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.components import Component, vision_component
from multimodal_builder.mappings import projector
from multimodal_builder.mappings.base import interpret
from multimodal_builder.plan import Plan, check_accounts
from multimodal_recipes.recipe import LLM_DIR, PROJECTOR_DIR, FeatureSelect, Recipe, VisionRecipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_api.families import Family, LlmType
    from multimodal_builder.checkpoints.tensors import TensorInfo, TensorSource
    from multimodal_builder.folder_tokenizer import FolderTokenizer
    from multimodal_builder.mappings.base import Rule
    from multimodal_builder.mappings.language_model import LanguageModel
    from multimodal_builder.towers import Tower
    from multimodal_recipes.recipe import ProjectorConfig


class Part(NamedTuple):
    """Tensors of one component."""

    source: TensorSource
    infos: Mapping[str, TensorInfo]
    """Those of `source` that are the component's."""

    @classmethod
    def of(cls, source: TensorSource, prefixes: tuple[str, ...] = ("",)) -> Part:
        """Take the tensors whose names begin so."""
        return cls(source, {name: info for name, info in source.infos().items() if name.startswith(prefixes)})

    def prefix(self, prefixes: tuple[str, ...]) -> str:
        """Give the one of these that stands in front of its names."""
        return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in self.infos)), prefixes[0])


@dataclass(frozen=True, slots=True)
class WholeModel:
    """Everything that is known of it, from configurations and headers."""

    at: str
    """What to call the folder in an error."""
    family: Family
    language_model: LanguageModel
    language: Part
    tower: Tower
    projection: ProjectorConfig
    projector: Part
    projector_rules: tuple[Rule, ...]
    tokenizer: FolderTokenizer
    select_layer: int
    select_feature: FeatureSelect
    dropped: int
    """Tokens of the tower that are left out in front."""
    others: tuple[str, ...]
    """Tensors that belong to none of the parts."""
    settings: bytes
    """Configurations that decide the result."""

    def plan(self) -> Plan:
        """Decide the conversion.

        Raises:
            ProductError: weights and configurations disagree.
        """
        vision = self._vision()
        components = (self._llm(), vision_component(self.tower), self._projector())
        check_accounts(components, list(self.others), at=self.at)
        recipe = Recipe(
            family=self.family,
            template=self.tokenizer.converted.template,
            vision=vision,
            vocab_size=self.tokenizer.converted.vocab_size,
            eos_token_ids=self.tokenizer.ends,
            stop_strings=self.tokenizer.stop_strings,
            add_bos=self.tokenizer.add_bos,
            max_positions=self.language_model.positions,
        )
        return Plan(
            components=components,
            recipe=recipe,
            language_model=self.language_model,
            tower=self.tower,
            tokenizer=self.tokenizer.converted,
            # The recipe stands for the small files beside: settings of pictures, conversation, ends of answers.
            settings=(self.settings, recipe.model_dump_json().encode(), *self.tokenizer.converted.sources),
        )

    def _vision(self) -> VisionRecipe:
        layers = self.tower.config.num_hidden_layers
        if not -layers - 1 <= self.select_layer <= layers:
            raise config_error(
                f"{self.at}: the layer of the tower",
                f"is {self.select_layer}, but the tower has {layers} layers",
                "correct mm_vision_select_layer, or vision_feature_layer",
            )
        tokens = self.tower.class_tokens + self.tower.patches - self.dropped
        try:
            rows = self.projection.rows(tokens)
        except ValueError as error:
            raise config_error(f"{self.at}: mm_vision_select_feature", str(error), "correct it") from error
        return VisionRecipe(
            preprocessing=self.tower.preprocessing,
            select_layer=self.select_layer,
            select_feature=self.select_feature,
            class_token_length=self.dropped,
            tokens_per_image=rows,
        )

    def _llm(self) -> Component:
        model, tokenizer = self.language_model, self.tokenizer.converted
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
        return Component(
            LLM_DIR,
            self.language.source,
            interpret(model.rules, self.language.infos, model.parameters),
            {
                "config.json": model.config | ids,
                "generation_config.json": ids | {"do_sample": False},
                **tokenizer.files,
            },
        )

    def _projector(self) -> Component:
        return Component(
            PROJECTOR_DIR,
            self.projector.source,
            interpret(self.projector_rules, self.projector.infos, projector.parameters(self.projection)),
            {"config.json": self.projection.model_dump(mode="json", by_alias=True)},
        )


def require(what: str, found: tuple[Family, LlmType], families: tuple[Family, ...], types: tuple[LlmType, ...]) -> None:
    """Require that a folder is what was asked for.

    Raises:
        ProductError: with what to write instead.
    """
    family, llm_type = found
    if family not in families or llm_type not in types:
        raise ProductError(
            Reason.UNSUPPORTED_MODEL,
            at="spec.model",
            problem=f"type {family} with llmType {llm_type} does not fit {what}",
            remedy=f"write type {' or '.join(families)} and llmType {' or '.join(types)}",
        )
