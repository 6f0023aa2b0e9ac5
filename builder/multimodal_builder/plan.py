"""What a checkpoint becomes: components, recipe and every problem, from configurations and headers only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from multimodal_api.errors import Failure, ProductError
from multimodal_api.families import IMPLEMENTED_FAMILIES, IMPLEMENTED_LLM_TYPES, Family, LlmType
from multimodal_api.reasons import Reason
from multimodal_builder import checks
from multimodal_builder.components import Component, llm_component, projector_component, vision_component
from multimodal_builder.lora import Adapters, merge_adapters
from multimodal_builder.mappings import megatron
from multimodal_builder.mappings.architectures import nearest
from multimodal_builder.templates import CONVERSATIONS, prompt_template
from multimodal_builder.tokenizer import ConvertedTokenizer, convert_tokenizer
from multimodal_builder.towers import Tower, find_tower
from multimodal_builder.vision import projector_config, vision_recipe
from multimodal_recipes.recipe import Recipe, VisionRecipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_builder.checkpoints.config import ModelConfig
    from multimodal_builder.checkpoints.nemo import NemoCheckpoint
    from multimodal_builder.mappings.language_model import LanguageModel

SHOWN: Final = 5
"""Names that an error prints of a list; the rest is counted."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a conversion does, decided."""

    components: tuple[Component, ...]
    recipe: Recipe
    language_model: LanguageModel
    tower: Tower
    prompt_tokens: int
    """Of the shortest prompt, without media."""
    settings: tuple[bytes, ...]
    """The checkpoint's files other than weights that decide the result."""

    @property
    def weight_bytes(self) -> int:
        """Of all components, as the checkpoint stores them."""
        return sum(component.mapped.nbytes for component in self.components)


def make_plan(checkpoint: NemoCheckpoint, family: Family, llm_type: LlmType) -> tuple[Plan | None, list[Failure]]:
    """Decide a conversion.

    Returns:
        The plan and no problems, or no plan and all problems.
    """
    if family not in IMPLEMENTED_FAMILIES or llm_type not in IMPLEMENTED_LLM_TYPES:
        return None, [_unsupported(family, llm_type)]
    problems = list(checks.check_config(checkpoint.config, llm_type))
    checkpoint = _attempt(lambda: _merged(checkpoint), problems) or checkpoint
    tokenizer = None if problems else _attempt(lambda: _tokenizer(checkpoint), problems)
    tower = _attempt(lambda: find_tower(checkpoint), problems)
    if tower is not None:
        problems += checks.check_tower(checkpoint.config, tower.config)
    if tokenizer is None or tower is None:
        return None, problems
    plan = _attempt(lambda: _assemble(checkpoint, family, llm_type, tokenizer, tower), problems)
    return (None if problems else plan), problems


def _attempt(step: Callable[[], _Result], problems: list[Failure]) -> _Result | None:
    """Run a step; a failure is kept, so that a person hears of all of them at once, and the result is None."""
    try:
        return step()
    except ProductError as error:
        problems.append(error.failure)
        return None


def _unsupported(family: Family, llm_type: LlmType) -> Failure:
    return Failure(
        reason=Reason.UNSUPPORTED_MODEL,
        at="spec.model",
        problem=f"type {family} with llmType {llm_type} is not implemented",
        remedy=f"this version builds {', '.join(IMPLEMENTED_FAMILIES)} with {', '.join(IMPLEMENTED_LLM_TYPES)}",
    )


def _merged(checkpoint: NemoCheckpoint) -> NemoCheckpoint:
    """Give the checkpoint with its adapters in its weights."""
    adapters = Adapters(checkpoint.members.at, checkpoint.tensors, checkpoint.config.lora)
    return replace(checkpoint, tensors=merge_adapters(checkpoint.tensors, [adapters]))


def _tokenizer(checkpoint: NemoCheckpoint) -> ConvertedTokenizer:
    config = checkpoint.config
    conversation = CONVERSATIONS[config.data.conv_template]
    return convert_tokenizer(
        checkpoint.artifact("tokenizer.model", config.tokenizer.model),
        prompt_template(conversation, start_end=config.mm_cfg.use_im_start_end),
        positions=config.positions,
        at=f"{checkpoint.members.at}: tokenizer.model",
    )


def _assemble(
    checkpoint: NemoCheckpoint, family: Family, llm_type: LlmType, tokenizer: ConvertedTokenizer, tower: Tower
) -> Plan:
    config = checkpoint.config
    language_model = nearest(config, llm_type).build(config, rows=_embedding_rows(checkpoint, tokenizer.vocab_size))
    projection = projector_config(config, tower)
    vision = vision_recipe(config, tower, projection)
    components = (
        llm_component(checkpoint, language_model, tokenizer),
        vision_component(tower),
        projector_component(checkpoint, projection),
    )
    _check_weights(components, checkpoint.members.at)
    return Plan(
        components=components,
        recipe=_recipe(config, family, tokenizer, vision),
        language_model=language_model,
        tower=tower,
        prompt_tokens=tokenizer.prompt_tokens,
        settings=(checkpoint.config_bytes(), checkpoint.artifact("tokenizer.model", config.tokenizer.model)),
    )


def _embedding_rows(checkpoint: NemoCheckpoint, vocab_size: int) -> int:
    """Give the padded size of the vocabulary, which only the weights know.

    Raises:
        ProductError: there is no embedding, or it is smaller than the tokenizer.
    """
    info = checkpoint.tensors.infos().get(megatron.EMBEDDING)
    rows = info.shape[0] if info is not None and info.shape else 0
    if rows < vocab_size:
        raise ProductError(
            Reason.CHECKPOINT_WEIGHTS,
            at=f"{checkpoint.members.at}: {megatron.EMBEDDING}",
            problem=f"{rows} rows for a tokenizer of {vocab_size} pieces" if info else "this tensor is missing",
            remedy="use an archive that holds the whole language model and the tokenizer it was trained with",
        )
    return rows


def _recipe(config: ModelConfig, family: Family, tokenizer: ConvertedTokenizer, vision: VisionRecipe) -> Recipe:
    return Recipe(
        family=family,
        template=tokenizer.template,
        vision=vision,
        vocab_size=tokenizer.vocab_size,
        eos_token_ids=(tokenizer.eos,),
        stop_strings=CONVERSATIONS[config.data.conv_template].stop_strings,
        add_bos=False,
        max_positions=config.positions,
    )


def _check_weights(components: tuple[Component, ...], at: str) -> None:
    """Require that every tensor of the checkpoint is consumed and every parameter of the model is set.

    Raises:
        ProductError: with both difference lists.
    """
    maps = [component.mapped for component in components]
    lists = (
        ("missing", [name for mapped in maps for name in mapped.missing]),
        ("left over", [name for mapped in maps for name in mapped.unknown]),
        ("wrong", [sentence for mapped in maps for sentence in mapped.wrong]),
    )
    parts = [f"{len(names)} {label}: {_some(names)}" for label, names in lists if names]
    if parts:
        raise ProductError(
            Reason.CHECKPOINT_WEIGHTS,
            at=f"{at}: weights",
            problem="; ".join(parts),
            remedy="use a whole checkpoint whose model_config.yaml belongs to its weights",
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
