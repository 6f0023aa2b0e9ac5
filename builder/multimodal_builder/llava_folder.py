"""transformers' `LlavaForConditionalGeneration`, as a folder on disk, as a checkpoint."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from multimodal_api.errors import Failure, ProductError
from multimodal_api.families import Family, LlmType
from multimodal_api.logs import FIELDS
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.config import LanguageConfig, config_error
from multimodal_builder.checkpoints.huggingface import CONFIG_NAME, PREPROCESSOR_NAME, HuggingFaceFolder
from multimodal_builder.components import Component
from multimodal_builder.folder_tokenizer import read_folder_tokenizer
from multimodal_builder.mappings import projector, vit
from multimodal_builder.mappings.base import Ignore, Rename, interpret
from multimodal_builder.mappings.llama import LLAMA, MISTRAL
from multimodal_builder.plan import Plan, check_accounts
from multimodal_builder.preprocessor import read_preprocessing
from multimodal_builder.tower_config import TYPES, validated
from multimodal_builder.towers import Tower
from multimodal_recipes.recipe import (
    LLM_DIR,
    PROJECTOR_DIR,
    VISION_DIR,
    FeatureSelect,
    ProjectorConfig,
    Recipe,
    VisionRecipe,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
    from multimodal_builder.checkpoints.tensors import TensorInfo, TensorSource
    from multimodal_builder.folder_tokenizer import FolderTokenizer
    from multimodal_builder.mappings.base import Rule
    from multimodal_builder.mappings.language_model import Architecture, LanguageModel

log = logging.getLogger(__name__)

MODEL_TYPE: Final = "llava"
LANGUAGE: Final = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}
"""What stands in front of the language model's names in either of transformers' spellings, and what takes its place."""
TOWERS: Final = ("vision_tower.", "model.vision_tower.")
PROJECTORS: Final = ("multi_modal_projector.", "model.multi_modal_projector.")
PROJECTED: Final = {"linear_1": "0", "linear_2": "2"}
"""transformers' names of the projector's layers, and their places in a sequence; 1 is the activation."""
DROPPED: Final = ("auto_map", "_name_or_path", "torch_dtype", "dtype")
"""Keys of a configuration that are not taken over: code is never loaded, and the type is that of the weights."""

_Size = Annotated[int, Field(ge=1, le=10_000_000)]


class _Text(BaseModel):
    """`text_config`; absent keys have the defaults of transformers' class."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model_type: str
    hidden_size: _Size = 4096
    intermediate_size: _Size
    num_hidden_layers: _Size = 32
    num_attention_heads: _Size = 32
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    max_position_embeddings: _Size
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool | None = None


class _Llava(BaseModel):
    """`config.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    text_config: dict[str, Any]
    vision_config: dict[str, Any]
    image_token: int = Field(default=32000, validation_alias=AliasChoices("image_token_index", "image_token_id"))
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    vision_feature_layer: int = -2
    vision_feature_select_strategy: str = "default"
    tie_word_embeddings: bool = False


@dataclass(frozen=True, slots=True)
class _Kind:
    architecture: Architecture
    defaults: Mapping[str, int]


_KINDS: Final = {
    "llama": _Kind(LLAMA, {"intermediate_size": 11008, "max_position_embeddings": 2048}),
    "mistral": _Kind(
        MISTRAL, {"intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8}
    ),
}
"""By `model_type` of the language model: its class, and those of its defaults that differ among classes."""
_STRATEGIES: Final = {"default": (FeatureSelect.PATCH, 1), "full": (FeatureSelect.CLS_PATCH, 0)}
"""transformers drops the first token for `default`, whether the tower has a class token or not."""


def is_llava(path: Path) -> bool:
    """Tell whether there is such a folder at a path."""
    try:
        document = json.loads((path / CONFIG_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("model_type") == MODEL_TYPE


def plan_llava(paths: CheckpointPaths, family: Family, llm_type: LlmType) -> tuple[Plan | None, list[Failure]]:
    """Decide the conversion of such a folder.

    Returns:
        The plan and no problems, or no plan and a problem.
    """
    if paths.llm is not None or paths.lora is not None:
        return None, [
            Failure(
                reason=Reason.UNSUPPORTED_MODEL,
                at="spec.model",
                problem="a LLaVA of transformers holds its language model, and takes no other and no adapter",
                remedy="leave llmCheckpoint and loraCheckpoint out",
            )
        ]
    if family is not Family.NEVA or llm_type is not LlmType.LLAMA:
        return None, [
            Failure(
                reason=Reason.UNSUPPORTED_MODEL,
                at="spec.model",
                problem=f"type {family} with llmType {llm_type} does not fit a LLaVA of transformers",
                remedy=f"write type {Family.NEVA} and llmType {LlmType.LLAMA}",
            )
        ]
    with ExitStack() as opened:
        folder = HuggingFaceFolder(paths.visual)
        opened.callback(folder.close)
        try:
            return _plan(folder, family, opened), []
        except ProductError as error:
            return None, [error.failure]


def _plan(folder: HuggingFaceFolder, family: Family, opened: ExitStack) -> Plan:
    at = f"{folder.path.name}/{CONFIG_NAME}"
    document = folder.json(CONFIG_NAME)
    config = validated(_Llava, document, at)
    _check(config, at)
    tensors = folder.tensors()
    infos = tensors.infos()
    tower = _tower(folder, config, tensors, infos, at)
    tokenizer = read_folder_tokenizer(folder, family, image_id=config.image_token)
    language_model = _language_model(config, infos, tokenizer, at)
    projection = ProjectorConfig(kind="mlp2x_gelu", input_size=tower.hidden_size, hidden_size=language_model.hidden)
    components = (
        _llm(language_model, tokenizer, tensors, infos),
        Component(
            VISION_DIR,
            tensors,
            tower.mapped(),
            {"config.json": tower.canonical_config(), PREPROCESSOR_NAME: tower.canonical_preprocessor()},
        ),
        _projector(projection, tensors, infos),
    )
    known = (*LANGUAGE, *TOWERS, *PROJECTORS)
    check_accounts(components, [name for name in infos if not name.startswith(known)], at=folder.path.name)
    return Plan(
        components=components,
        recipe=_recipe(config, family, tokenizer, tower, language_model.positions),
        language_model=language_model,
        tower=replace(tower, opened=opened.pop_all()),
        tokenizer=tokenizer.converted,
        settings=(json.dumps(document, sort_keys=True).encode(), *tokenizer.converted.sources),
    )


def _check(config: _Llava, at: str) -> None:
    """Require what the canonical model can hold.

    Raises:
        ProductError: a key has another value.
    """
    pairs: tuple[tuple[str, object, tuple[object, ...]], ...] = (
        ("projector_hidden_act", config.projector_hidden_act, ("gelu",)),
        ("multimodal_projector_bias", config.multimodal_projector_bias, (True,)),
        ("vision_feature_select_strategy", config.vision_feature_select_strategy, tuple(_STRATEGIES)),
        ("text_config.model_type", config.text_config.get("model_type", "llama"), tuple(_KINDS)),
        ("vision_config.model_type", config.vision_config.get("model_type", "clip_vision_model"), tuple(TYPES)),
    )
    for key, found, allowed in pairs:
        if found not in allowed:
            raise config_error(
                f"{at}: {key}",
                f"is {str(found)[:60]!r}, but this version takes {' or '.join(map(repr, allowed))}",
                "use another model",
            )


def _tower(
    folder: HuggingFaceFolder, config: _Llava, tensors: TensorSource, infos: Mapping[str, TensorInfo], at: str
) -> Tower:
    kind, _ = TYPES[config.vision_config.get("model_type", "clip_vision_model")]
    sizes = validated(kind, config.vision_config, f"{at}: vision_config")
    if not -sizes.num_hidden_layers - 1 <= config.vision_feature_layer <= sizes.num_hidden_layers:
        raise config_error(
            f"{at}: vision_feature_layer",
            f"is {config.vision_feature_layer}, but the tower has {sizes.num_hidden_layers} layers",
            "correct it",
        )
    padded = folder.json(PREPROCESSOR_NAME).get("do_pad") is True
    preprocessing = read_preprocessing(folder, sizes, "pad" if padded else "square")
    own = {name: info for name, info in infos.items() if name.startswith(TOWERS)}
    before = _prefix(own, TOWERS)
    rules = vit.rules(sizes, own, before=before)
    return Tower(sizes, preprocessing, tensors, own, rules, trained=True, opened=ExitStack())


def _language_model(
    config: _Llava, infos: Mapping[str, TensorInfo], tokenizer: FolderTokenizer, at: str
) -> LanguageModel:
    """Describe the language model: sizes by its configuration, padding by its weights.

    Raises:
        ProductError: a key is missing or wrong, or the tokenizer is larger than the embedding.
    """
    kind = _KINDS[config.text_config.get("model_type", "llama")]
    text = validated(_Text, {"model_type": "llama", **kind.defaults, **config.text_config}, f"{at}: text_config")
    if text.attention_bias != text.mlp_bias:
        raise config_error(f"{at}: text_config.mlp_bias", "differs from attention_bias", "use another model")
    embedding = next((info for name, info in infos.items() if name.endswith("embed_tokens.weight")), None)
    rows = embedding.shape[0] if embedding is not None and embedding.shape else 0
    if rows < tokenizer.converted.vocab_size:
        raise ProductError(
            Reason.CHECKPOINT_WEIGHTS,
            at=f"{at}: text_config.vocab_size",
            problem=f"an embedding of {rows} rows for a tokenizer of {tokenizer.converted.vocab_size} tokens",
            remedy="copy the whole model there, with its own tokenizer",
        )
    tied = config.tie_word_embeddings if text.tie_word_embeddings is None else text.tie_word_embeddings
    language = LanguageConfig.model_validate({
        "num_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "ffn_hidden_size": text.intermediate_size,
        "num_attention_heads": text.num_attention_heads,
        "num_query_groups": text.num_key_value_heads,
        "kv_channels": text.head_dim,
        "encoder_seq_length": text.max_position_embeddings,
        "layernorm_epsilon": text.rms_norm_eps,
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "position_embedding_type": "rope",
        "bias": text.attention_bias,
        "share_embeddings_and_output_weights": tied,
        "tokenizer": {"library": "huggingface"},
    })  # fmt: skip
    built = kind.architecture.build(language, rows=rows)
    if dropped := sorted(set(DROPPED[:1]) & {*config.text_config, *config.vision_config}):
        log.info("left out", extra={FIELDS: {"keys": dropped, "because": "code of a model is never run"}})
    carried = {key: value for key, value in config.text_config.items() if key not in DROPPED}
    own = {"architectures": [kind.architecture.name], "vocab_size": rows, "tie_word_embeddings": tied}
    return replace(built, config={"model_type": "llama", **carried, **own})


def _llm(
    model: LanguageModel, tokenizer: FolderTokenizer, tensors: TensorSource, infos: Mapping[str, TensorInfo]
) -> Component:
    own = {name: info for name, info in infos.items() if name.startswith(tuple(LANGUAGE))}
    rules: tuple[Rule, ...] = (
        Ignore("*.rotary_emb.inv_freq", why="computed from the configuration"),
        *([Ignore("*lm_head.weight", why="the embedding once more")] if model.tied else []),
        *(Rename(name, _renamed(name)) for name in own),
    )
    ids = {"bos_token_id": tokenizer.converted.bos, "eos_token_id": tokenizer.converted.eos}
    return Component(
        LLM_DIR,
        tensors,
        interpret(rules, own, model.parameters),
        {
            "config.json": model.config | ids,
            "generation_config.json": ids | {"do_sample": False},
            **tokenizer.converted.files,
        },
    )


def _renamed(name: str) -> str:
    before = next(prefix for prefix in LANGUAGE if name.startswith(prefix))
    return LANGUAGE[before] + name.removeprefix(before)


def _projector(config: ProjectorConfig, tensors: TensorSource, infos: Mapping[str, TensorInfo]) -> Component:
    own = {name: info for name, info in infos.items() if name.startswith(PROJECTORS)}
    before = _prefix(own, PROJECTORS)
    rules = tuple(
        Rename(f"{before}{layer}.{kind}", f"{projector.PREFIX}{place}.{kind}")
        for layer, place in PROJECTED.items()
        for kind in ("weight", "bias")
    )
    files = {"config.json": config.model_dump(mode="json", by_alias=True)}
    return Component(PROJECTOR_DIR, tensors, interpret(rules, own, projector.parameters(config)), files)


def _prefix(names: Mapping[str, TensorInfo], prefixes: tuple[str, ...]) -> str:
    return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in names)), prefixes[0])


def _recipe(config: _Llava, family: Family, tokenizer: FolderTokenizer, tower: Tower, positions: int) -> Recipe:
    select, dropped = _STRATEGIES[config.vision_feature_select_strategy]
    vision = VisionRecipe(
        preprocessing=tower.preprocessing,
        select_layer=config.vision_feature_layer,
        select_feature=select,
        class_token_length=dropped,
        tokens_per_image=tower.class_tokens + tower.patches - dropped,
    )
    return Recipe(
        family=family,
        template=tokenizer.converted.template,
        vision=vision,
        vocab_size=tokenizer.converted.vocab_size,
        eos_token_ids=tokenizer.ends,
        stop_strings=(),
        add_bos=tokenizer.add_bos,
        max_positions=positions,
    )
