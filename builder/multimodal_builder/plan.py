"""What a checkpoint becomes: components, recipe and every problem, from configurations and headers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from multimodal_api.errors import Failure, ProductError
from multimodal_api.reasons import Reason
from multimodal_builder import checks
from multimodal_builder.components import (
    VISION_PREFIXES,
    Component,
    llm_component,
    projector_component,
    strays,
    vision_component,
)
from multimodal_builder.lora import Adapters, merge_adapters
from multimodal_builder.mappings import megatron
from multimodal_builder.mappings.architectures import nearest
from multimodal_builder.templates import CONVERSATIONS, SEQUENCE_MARKS, media_marks, prompt_template
from multimodal_builder.tokenizer import PICTURE, ConvertedTokenizer, Usage
from multimodal_builder.tokenizer_files import convert_tokenizer, read_tokenizer
from multimodal_builder.towers import Tower, find_tower
from multimodal_builder.tuning import tune
from multimodal_builder.video import video_recipe
from multimodal_builder.vision import projector_config, vision_recipe
from multimodal_recipes.layout import lay_out_video
from multimodal_recipes.recipe import Recipe, TimeTokens, VisionRecipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from multimodal_api.families import Family, LlmType
    from multimodal_builder.checkpoints.checkpoint import Checkpoint, Sources
    from multimodal_builder.checkpoints.config import LanguageConfig, ModelConfig, TunedConfig, TunedT
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
    tower: Tower | None
    """Of a model that sees."""
    tokenizer: ConvertedTokenizer
    settings: tuple[bytes, ...]
    """The checkpoint's files other than weights that decide the result."""

    @property
    def weight_bytes(self) -> int:
        """Of all components, as the checkpoint stores them."""
        return sum(component.mapped.nbytes for component in self.components)


def make_plan(sources: Sources[ModelConfig], family: Family, llm_type: LlmType) -> tuple[Plan | None, list[Failure]]:
    """Decide a conversion.

    Returns:
        The plan and no problems, or no plan and all problems.
    """
    problems = list(checks.check_config(sources, family, llm_type))
    sources = attempt(lambda: merged(sources), problems) or sources
    tokenizer = None if problems else attempt(lambda: _tokenizer(sources, family), problems)
    tower = attempt(lambda: find_tower(sources.visual, sources.hub), problems)
    if tower is not None:
        problems += checks.check_tower(sources.visual, tower.config)
    if tokenizer is None or tower is None:
        return None, problems
    plan = attempt(lambda: _assemble(sources, family, llm_type, tokenizer, tower), problems)
    return (None if problems else plan), problems


def attempt(step: Callable[[], _Result], problems: list[Failure]) -> _Result | None:
    """Run a step; a failure is kept, so that a person hears of all of them at once, and the result is None."""
    try:
        return step()
    except ProductError as error:
        problems.append(error.failure)
        return None


def merged(sources: Sources[TunedT]) -> Sources[TunedT]:
    """Give the sources with adapters in the weights of the language model, whichever checkpoint holds them."""
    adapters = [Adapters(source.at, source.tensors, source.config.lora) for source in sources.given()]
    if sources.peft is not None and (holding := next((found for found in adapters if found.names), None)) is not None:
        raise ProductError(
            Reason.CHECKPOINT_WEIGHTS,
            at=holding.at,
            problem=f"holds adapters, and {sources.peft.at} is one too: both would be added to the same weights",
            remedy="give either a LoRA checkpoint, or a checkpoint with its adapters in it",
        )
    if sources.lora is not None and not adapters[-1].names:
        raise ProductError(
            Reason.CHECKPOINT_WEIGHTS,
            at=sources.lora.at,
            problem="it was given as a LoRA checkpoint, and holds no adapter",
            remedy="leave it out, or give the checkpoint that holds the adapters",
        )
    return sources.with_language(merge_adapters(sources.language.tensors, adapters, sources.language.config))


def _usage(sources: Sources[ModelConfig], family: Family) -> Usage:
    config = sources.visual.config
    conversation = CONVERSATIONS[config.data.conv_template]
    marks = media_marks(config.mm_cfg.llm.model_type)
    video = video_recipe(config, family, marks)
    return Usage(
        template=prompt_template(conversation, family, marks, start_end=config.mm_cfg.use_im_start_end),
        marks=marks,
        positions=sources.language.config.positions,
        replaced=SEQUENCE_MARKS if conversation.sequence_marks else {},
        medium=lay_out_video(video, rows=1, frames=1) if video else PICTURE,
    )


def _tokenizer(sources: Sources[ModelConfig], family: Family) -> ConvertedTokenizer:
    """Convert the visual checkpoint's tokenizer; that of the language model's own may lack the pieces of media."""
    added = sources.visual.config.tokenizer.additional_special_tokens
    return convert_tokenizer(read_tokenizer(sources.visual), added, _usage(sources, family))


def _assemble(
    sources: Sources[ModelConfig], family: Family, llm_type: LlmType, tokenizer: ConvertedTokenizer, tower: Tower
) -> Plan:
    language = sources.language
    language_model = build_language_model(language, llm_type, tokenizer)
    projection = projector_config(sources.visual.config, tower)
    marks = media_marks(sources.visual.config.mm_cfg.llm.model_type)
    video = video_recipe(sources.visual.config, family, marks)
    vision = vision_recipe(sources.visual.config, tower, projection, video)
    components = (
        llm_component(sources, language_model, tokenizer),
        vision_component(tower),
        projector_component(sources.visual, projection),
    )
    check_weights(components, sources)
    return Plan(
        components=tune(components, sources.peft),
        recipe=_recipe(sources, family, tokenizer, vision, positions=language_model.positions),
        language_model=language_model,
        tower=tower,
        tokenizer=tokenizer,
        settings=(*sources.settings(), *tokenizer.sources),
    )


def build_language_model(
    checkpoint: Checkpoint[LanguageConfig], llm_type: LlmType, tokenizer: ConvertedTokenizer
) -> LanguageModel:
    """Decide what the language model becomes.

    Raises:
        ProductError: there is no embedding, or it is smaller than the tokenizer.
    """
    if checkpoint.ready is not None:
        require_rows(checkpoint.ready.rows, tokenizer.vocab_size, at=f"{checkpoint.config_at}: vocab_size")
        return checkpoint.ready
    return nearest(checkpoint.config, llm_type).build(
        checkpoint.config,
        rows=_embedding_rows(checkpoint, tokenizer.vocab_size),
        positions=_rows(checkpoint, megatron.POSITIONS),
    )


def _embedding_rows(checkpoint: Checkpoint[LanguageConfig], vocab_size: int) -> int:
    """Give the padded size of the vocabulary, which only the weights know.

    Raises:
        ProductError: there is no embedding, or it is smaller than the tokenizer.
    """
    rows = _rows(checkpoint, megatron.EMBEDDING) or 0
    require_rows(rows, vocab_size, at=f"{checkpoint.at}: {megatron.EMBEDDING}")
    return rows


def require_rows(rows: int, vocab_size: int, *, at: str) -> None:
    """Require an embedding with a row for each token.

    Raises:
        ProductError: there is none, or it is smaller than the tokenizer.
    """
    if rows < vocab_size:
        raise ProductError(
            Reason.CHECKPOINT_WEIGHTS,
            at=at,
            problem=f"{rows} rows for a tokenizer of {vocab_size} pieces" if rows else "this tensor is missing",
            remedy="use a checkpoint that holds the whole language model and the tokenizer it was trained with",
        )


def _rows(checkpoint: Checkpoint[LanguageConfig], name: str) -> int | None:
    info = checkpoint.tensors.infos().get(name)
    return info.shape[0] if info is not None and info.shape else None


def _recipe(
    sources: Sources[ModelConfig],
    family: Family,
    tokenizer: ConvertedTokenizer,
    vision: VisionRecipe,
    *,
    positions: int,
) -> Recipe:
    return Recipe(
        family=family,
        template=tokenizer.template,
        vision=vision,
        vocab_size=tokenizer.vocab_size,
        eos_token_ids=(tokenizer.eos,),
        stop_strings=CONVERSATIONS[sources.visual.config.data.conv_template].stop_strings,
        add_bos=False,
        max_positions=positions,
        time_tokens=TimeTokens(count=tokenizer.time_tokens) if vision.video and tokenizer.time_tokens else None,
    )


def check_weights(
    components: tuple[Component, ...], sources: Sources[TunedConfig], media: tuple[str, ...] = VISION_PREFIXES
) -> None:
    """Require that every tensor of the checkpoints is consumed and every parameter of the model is set.

    Raises:
        ProductError: with both difference lists.
    """
    at = " and ".join(dict.fromkeys((sources.visual.at, sources.language.at)))
    check_accounts(components, strays(sources, media), at=at)


def check_accounts(components: tuple[Component, ...], others: list[str], *, at: str) -> None:
    """Require that nothing is missing, left over or wrong.

    Args:
        components: All of a model.
        others: Tensors that none of them looks at.
        at: What to call the checkpoints in an error.

    Raises:
        ProductError: with all differences.
    """
    maps = [component.mapped for component in components]
    lists = (
        ("missing", [name for mapped in maps for name in mapped.missing]),
        ("left over", [*(name for mapped in maps for name in mapped.unknown), *others]),
        ("wrong", [sentence for mapped in maps for sentence in mapped.wrong]),
    )
    parts = [f"{len(names)} {label}: {_some(names)}" for label, names in lists if names]
    if parts:
        raise ProductError(
            Reason.CHECKPOINT_WEIGHTS,
            at=f"{at}: weights",
            problem="; ".join(parts),
            remedy="use a whole checkpoint whose configuration belongs to its weights",
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
