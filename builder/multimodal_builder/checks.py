"""Rules that a checkpoint's configuration must keep, as data: every broken one is reported, not the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from multimodal_api.errors import Failure
from multimodal_api.families import Family
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.config import CONFIG_NAME, LanguageConfig, ModelConfig
from multimodal_builder.components import is_language
from multimodal_builder.language_folder import KINDS
from multimodal_builder.mappings.architectures import fitting_types, nearest
from multimodal_builder.templates import CONVERSATIONS
from multimodal_builder.video import ALL_FRAMES, LITA_LAYOUTS
from multimodal_recipes.recipe import FeatureSelect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from multimodal_api.engine import TokenLimits
    from multimodal_api.families import LlmType
    from multimodal_builder.checkpoints.checkpoint import Checkpoint, Sources
    from multimodal_builder.mappings.language_model import LanguageModel
    from multimodal_builder.tower_config import TowerConfig
    from multimodal_recipes.prompt import Prompt


_Config_contra = TypeVar("_Config_contra", bound=LanguageConfig, contravariant=True)


class ConfigRule(NamedTuple, Generic[_Config_contra]):
    """One rule of `model_config.yaml`."""

    key: str
    value: Callable[[_Config_contra], object]
    holds: Callable[[_Config_contra], bool]
    why: str
    """What contradicts the value; continues "is <value>, but"."""
    remedy: str
    reason: Reason = Reason.CHECKPOINT_CONFIG


DECODER: Final[tuple[ConfigRule[LanguageConfig], ...]] = (
    ConfigRule(
        "scale_positional_embedding",
        lambda c: c.scale_positional_embedding,
        lambda c: not (c.scale_positional_embedding and c.seq_len_interpolation_factor),
        "positions are already scaled by seq_len_interpolation_factor",
        "use a checkpoint with one of the two",
        Reason.UNSUPPORTED_MODEL,
    ),
    ConfigRule(
        "rotary_interleaved",
        lambda c: c.rotary_interleaved,
        lambda c: not c.rotary_interleaved,
        "this version rotates the halves of each head",
        "use a checkpoint with rotary_interleaved false",
        Reason.UNSUPPORTED_MODEL,
    ),
    ConfigRule(
        "normalize_attention_scores",
        lambda c: c.normalize_attention_scores,
        lambda c: c.normalize_attention_scores,
        "this version divides scores by the square root of the head size",
        "use a checkpoint with normalize_attention_scores true",
        Reason.UNSUPPORTED_MODEL,
    ),
    ConfigRule(
        "transformer_block_type",
        lambda c: c.transformer_block_type,
        lambda c: c.transformer_block_type == "pre_ln",
        "this version has norms in front of the blocks only",
        "use a checkpoint with transformer_block_type pre_ln",
        Reason.UNSUPPORTED_MODEL,
    ),
    ConfigRule(
        "num_query_groups",
        lambda c: c.num_query_groups,
        lambda c: c.num_attention_heads % c.groups == 0,
        "the heads cannot be shared out among so many groups",
        "correct num_query_groups or num_attention_heads",
    ),
    ConfigRule(
        "kv_channels",
        lambda c: c.kv_channels,
        lambda c: c.kv_channels is not None or c.hidden_size % c.num_attention_heads == 0,
        "hidden_size is no multiple of num_attention_heads",
        "give kv_channels, or correct the two",
    ),
)
"""Of the language model, whatever its type."""

OTHER_FAMILY: Final = "set spec.model.type to the type the checkpoint has, if this version serves it"

VISUAL: Final[tuple[ConfigRule[ModelConfig], ...]] = (
    ConfigRule(
        "data.conv_template",
        lambda c: c.data.conv_template,
        lambda c: c.data.conv_template in CONVERSATIONS,
        f"this version knows {', '.join(CONVERSATIONS)}",
        "use a checkpoint that was trained with one of these",
        Reason.UNSUPPORTED_MODEL,
    ),
    ConfigRule(
        # Of the checkpoint that was trained as a whole: NeMo's Mixtral converter sets it, NeVA's own settings do not.
        "moe_router_pre_softmax",
        lambda c: c.moe_router_pre_softmax,
        lambda c: not (c.num_moe_experts and c.moe_router_pre_softmax),
        "transformers' Mixtral weighs the chosen experts so that their weights sum to one",
        "set it to false: the checkpoint is then served as NeMo's exporter served it, not as it was trained",
        Reason.UNSUPPORTED_MODEL,
    ),
    ConfigRule(
        "mm_cfg.vision_encoder.vision_select_feature",
        lambda c: c.mm_cfg.vision_encoder.vision_select_feature,
        lambda c: c.mm_cfg.vision_encoder.vision_select_feature in set(FeatureSelect),
        f"NeMo knows {' and '.join(FeatureSelect)}",
        "correct it",
    ),
    ConfigRule(
        "data.sep_image_conv_front",
        lambda c: c.data.sep_image_conv_front,
        lambda c: not c.data.sep_image_conv_front,
        "media in a turn of their own are not implemented",
        "use a checkpoint that was trained with media in the questions",
        Reason.UNSUPPORTED_MODEL,
    ),
)
"""Of every family that sees."""


def _media_type(wanted: str, *, of: str) -> ConfigRule[ModelConfig]:
    return ConfigRule(
        "data.media_type",
        lambda c: c.data.media_type,
        lambda c: c.data.media_type == wanted,
        f"spec.model.type {of} has {wanted}",
        OTHER_FAMILY,
    )


def _use_lita(*, wanted: bool, of: str) -> ConfigRule[ModelConfig]:
    return ConfigRule(
        "mm_cfg.use_lita",
        lambda c: c.mm_cfg.use_lita,
        lambda c: c.mm_cfg.use_lita is wanted,
        f"spec.model.type {of} has {wanted}",
        OTHER_FAMILY,
    )


_ALL_FRAMES_OF_A_VIDEO: Final[ConfigRule[ModelConfig]] = ConfigRule(
    "data.splice_single_frame",
    lambda c: c.data.splice_single_frame,
    lambda c: c.data.splice_single_frame is None,
    "videos of a single frame are not implemented",
    "use a checkpoint that was trained with several frames",
    Reason.UNSUPPORTED_MODEL,
)
_LITA: Final[tuple[ConfigRule[ModelConfig], ...]] = (
    _use_lita(wanted=True, of="lita or vita"),
    _media_type("video", of="lita or vita"),
    _ALL_FRAMES_OF_A_VIDEO,
    ConfigRule(
        "data.num_frames",
        lambda c: c.data.num_frames,
        lambda c: c.data.num_frames >= 1,
        "a number of frames is needed",
        "correct it",
    ),
    ConfigRule(
        "mm_cfg.lita",
        lambda c: f"{c.mm_cfg.lita.lita_video_arch} with {c.mm_cfg.lita.visual_token_format}",
        lambda c: (c.mm_cfg.lita.lita_video_arch, c.mm_cfg.lita.visual_token_format) in LITA_LAYOUTS,
        f"NeMo trains {', '.join(f'{arch} with {form}' for arch, form in LITA_LAYOUTS)}",
        "correct lita_video_arch or visual_token_format",
    ),
    ConfigRule(
        "mm_cfg.lita.sample_frames",
        lambda c: c.mm_cfg.lita.sample_frames,
        lambda c: c.mm_cfg.lita.sample_frames <= c.data.num_frames,
        "data.num_frames is less",
        "correct one of the two",
    ),
)

FAMILY: Final[dict[Family, tuple[ConfigRule[ModelConfig], ...]]] = {
    Family.NEVA: (_use_lita(wanted=False, of="neva"), _media_type("image", of="neva")),
    # Archives of VILA are made with VITA's configuration file, which speaks of videos.
    Family.VILA: (),
    Family.VIDEO_NEVA: (
        _use_lita(wanted=False, of="video-neva"),
        _media_type("video", of="video-neva"),
        _ALL_FRAMES_OF_A_VIDEO,
        ConfigRule(
            "data.num_frames",
            lambda c: c.data.num_frames,
            lambda c: c.data.num_frames >= 1 or c.data.num_frames == ALL_FRAMES,
            f"a number of frames is needed, or {ALL_FRAMES} for all",
            "correct it",
        ),
    ),
    Family.LITA: _LITA,
    Family.VITA: _LITA,
}
"""Of one family."""

TOKENIZER: Final[tuple[ConfigRule[LanguageConfig], ...]] = (
    ConfigRule(
        "tokenizer.special_tokens",
        lambda c: c.tokenizer.special_tokens,
        lambda c: not c.tokenizer.special_tokens,
        "tokens that training renamed are not implemented",
        "use a checkpoint whose tokenizer has the tokens itself",
        Reason.UNSUPPORTED_MODEL,
    ),
)


def check_config(sources: Sources[ModelConfig], family: Family, llm_type: LlmType) -> Iterator[Failure]:
    """List every rule that a model of the family breaks; the language model may have its own checkpoint."""
    visual, language = sources.visual, sources.language
    yield from _broken((*FAMILY[family], *VISUAL, *TOKENIZER), visual.config, visual.config_at)
    yield from _check_language(language, llm_type)
    yield from _check_pair(sources)


def check_apart(language: Checkpoint[LanguageConfig], llm_type: LlmType) -> Iterator[Failure]:
    """List every rule that a language model with a tokenizer of its own breaks."""
    yield from _broken(TOKENIZER, language.config, language.config_at)
    yield from _check_language(language, llm_type)


def _check_language(language: Checkpoint[LanguageConfig], llm_type: LlmType) -> Iterator[Failure]:
    if language.ready is not None:
        yield from _check_ready(language.ready, llm_type, language.config_at)
        return
    yield from _broken(DECODER, language.config, language.config_at)
    yield from _check_llm_type(language, llm_type)


def _check_ready(model: LanguageModel, llm_type: LlmType, at: str) -> Iterator[Failure]:
    """Require that a model of transformers is one of the type's."""
    types = KINDS[model.config["model_type"]].types
    if llm_type not in types:
        yield Failure(
            reason=Reason.CHECKPOINT_CONFIG,
            at=f"{at}: model_type",
            problem=f"is {model.config['model_type']!r}, which is no llmType {llm_type}",
            remedy=f"set spec.model.llmType to {' or '.join(types)}",
        )


def _broken(rules: tuple[ConfigRule[_Config_contra], ...], config: _Config_contra, at: str) -> Iterator[Failure]:
    for rule in rules:
        if not rule.holds(config):
            yield Failure(
                reason=rule.reason,
                at=f"{at}: {rule.key}",
                problem=f"is {rule.value(config)!r}, but {rule.why}",
                remedy=rule.remedy,
            )


def _check_llm_type(language: Checkpoint[LanguageConfig], llm_type: LlmType) -> Iterator[Failure]:
    """List every key that keeps the type from holding the language model, and name the types that can."""
    config = language.config
    architecture = nearest(config, llm_type)
    others = fitting_types(config)
    for requirement in architecture.broken(config):
        yield Failure(
            reason=Reason.CHECKPOINT_CONFIG if others else Reason.UNSUPPORTED_MODEL,
            at=f"{language.config_at}: {requirement.key}",
            problem=f"is {requirement.value(config)!r}, but llmType {llm_type} ({architecture.name}) "
            f"needs {requirement.needs}",
            remedy=f"set spec.model.llmType to {' or '.join(others)}"
            if others
            else "use another checkpoint: no llmType of this version has this combination of settings",
        )


def _check_pair(sources: Sources[ModelConfig]) -> Iterator[Failure]:
    """Require a language model, and one that the projector was trained for."""
    visual, language = sources.visual, sources.language
    if not sources.apart and not any(map(is_language, visual.tensors.infos())):
        freeze = visual.config.mm_cfg.llm.freeze
        yield Failure(
            reason=Reason.CHECKPOINT_WEIGHTS,
            at=f"{visual.config_at}: mm_cfg.llm.freeze",
            problem=f"is {freeze}, and the checkpoint holds no language model",
            remedy="give the checkpoint of its language model too: spec.model.llmCheckpoint, or --llm",
        )
    if visual.config.hidden_size != language.config.hidden_size:
        yield Failure(
            reason=Reason.CHECKPOINT_CONFIG,
            at=f"{language.config_at}: hidden_size",
            problem=f"is {language.config.hidden_size}, but the projector was trained for {visual.config.hidden_size}",
            remedy="give the language model that the visual checkpoint was trained with",
        )


def check_tower(visual: Checkpoint[ModelConfig], tower: TowerConfig) -> Iterator[Failure]:
    """List every contradiction between the checkpoint's idea of its tower and the tower itself."""
    vision = visual.config.mm_cfg.vision_encoder
    edge = tower.image_size
    pairs: tuple[tuple[str, object, object], ...] = (
        ("patch_dim", vision.patch_dim or tower.patch_size, tower.patch_size),
        ("hidden_size", vision.hidden_size or tower.hidden_size, tower.hidden_size),
        ("crop_size", vision.crop_size or (edge, edge), (edge, edge)),
    )
    at = f"{visual.config_at}: mm_cfg.vision_encoder"
    for key, wanted, found in pairs:
        if wanted != found:
            yield Failure(
                reason=Reason.CHECKPOINT_CONFIG,
                at=f"{at}.{key}",
                problem=f"is {wanted}, but the tower's is {found}",
                remedy="put the tower that the checkpoint was trained with beside it",
            )
    if not -tower.num_hidden_layers - 1 <= vision.vision_select_layer <= tower.num_hidden_layers:
        yield Failure(
            reason=Reason.CHECKPOINT_CONFIG,
            at=f"{at}.vision_select_layer",
            problem=f"is {vision.vision_select_layer}, but the tower has {tower.num_hidden_layers} layers",
            remedy="put the tower that the checkpoint was trained with beside it",
        )


def check_limits(limits: TokenLimits, *, asked: Prompt, answer: int, positions: int) -> Iterator[Failure]:
    """List every limit with which a server refuses its own first question, and does not start.

    Args:
        limits: Of the specification.
        asked: That question's prompt.
        answer: The most tokens of its answer.
        positions: Longest sequence of the model.
    """
    media, whole = asked.media_length, len(asked.ids)
    question = (
        f"the first question of a server takes {media} positions for its medium and {whole - media} for its words"
    )
    if media > limits.max_multimodal_len:
        yield _too_small("maxMultimodalLen", limits.max_multimodal_len, f"one medium takes {media} positions", media)
    if whole > limits.max_input_len:
        yield _too_small("maxInputLen", limits.max_input_len, question, whole)
    if whole + min(answer, limits.max_output_len) > positions:
        yield Failure(
            reason=Reason.CHECKPOINT_CONFIG,
            at=f"{CONFIG_NAME}: max_position_embeddings",
            problem=f"is {positions}, but {question}, and the answer has to have room",
            remedy="correct it, or use another tower",
        )


def _too_small(field: str, value: int, problem: str, needed: int) -> Failure:
    return Failure(
        reason=Reason.LIMITS_TOO_SMALL,
        at=f"spec.limits.{field}",
        problem=f"is {value}, but {problem}",
        remedy=f"set it to {needed} or more",
    )
