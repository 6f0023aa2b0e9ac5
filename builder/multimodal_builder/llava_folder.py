"""transformers' `LlavaForConditionalGeneration`, as a folder on disk, as a checkpoint."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from multimodal_api.errors import Failure, ProductError
from multimodal_api.families import Family, LlmType
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.huggingface import CONFIG_NAME, PREPROCESSOR_NAME, HuggingFaceFolder
from multimodal_builder.components import Component
from multimodal_builder.folder_tokenizer import read_folder_tokenizer
from multimodal_builder.language_folder import KINDS, describe
from multimodal_builder.mappings import projector, vit
from multimodal_builder.mappings.base import Rename, interpret
from multimodal_builder.plan import Plan, check_accounts, require_rows
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
    from multimodal_builder.mappings.language_model import LanguageModel

log = logging.getLogger(__name__)

MODEL_TYPE: Final = "llava"
LANGUAGES: Final = tuple(name for name, kind in KINDS.items() if LlmType.LLAMA in kind.types)
"""`model_type` of the language models that are taken."""
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
        ("text_config.model_type", config.text_config.get("model_type", "llama"), LANGUAGES),
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
    own = {name: info for name, info in infos.items() if name.startswith(tuple(LANGUAGE))}
    inherited = {"model_type": "llama", "tie_word_embeddings": config.tie_word_embeddings}
    names = {name: _renamed(name) for name in own}
    model = describe(inherited | config.text_config, own, names, at=f"{at}: text_config")
    require_rows(model.rows, tokenizer.converted.vocab_size, at=f"{at}: text_config.vocab_size")
    return model


def _llm(
    model: LanguageModel, tokenizer: FolderTokenizer, tensors: TensorSource, infos: Mapping[str, TensorInfo]
) -> Component:
    own = {name: info for name, info in infos.items() if name.startswith(tuple(LANGUAGE))}
    ids = {"bos_token_id": tokenizer.converted.bos, "eos_token_id": tokenizer.converted.eos}
    return Component(
        LLM_DIR,
        tensors,
        interpret(model.rules, own, model.parameters),
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
