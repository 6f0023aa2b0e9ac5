"""transformers' `LlavaForConditionalGeneration`, as a folder on disk, as a checkpoint."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from multimodal_api.families import Family, LlmType
from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.huggingface import CONFIG_NAME
from multimodal_builder.folder_tokenizer import read_folder_tokenizer
from multimodal_builder.language_folder import KINDS, describe
from multimodal_builder.mappings import projector, vit
from multimodal_builder.mappings.base import Rename
from multimodal_builder.plan import require_rows
from multimodal_builder.preprocessor import processor_settings, read_preprocessing
from multimodal_builder.tower_config import TYPES, validated
from multimodal_builder.towers import Tower
from multimodal_builder.whole_model import Part, WholeModel, require
from multimodal_recipes.recipe import FeatureSelect, ProjectorConfig

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.huggingface import HuggingFaceFolder
    from multimodal_builder.folder_tokenizer import FolderTokenizer
    from multimodal_builder.mappings.language_model import LanguageModel

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


def read_llava(folder: HuggingFaceFolder, family: Family, llm_type: LlmType) -> WholeModel:
    """Read such a folder's configurations and headers.

    Raises:
        ProductError: a file is missing or damaged, or the model is one that this version cannot convert.
    """
    require("a LLaVA of transformers", (family, llm_type), (Family.NEVA,), (LlmType.LLAMA,))
    at = f"{folder.path.name}/{CONFIG_NAME}"
    document = folder.json(CONFIG_NAME)
    config = validated(_Llava, document, at)
    _check(config, at)
    tensors = folder.tensors()
    tower = _tower(folder, config, Part.of(tensors, TOWERS), at)
    tokenizer = read_folder_tokenizer(folder, family, image_id=config.image_token)
    language = Part.of(tensors, tuple(LANGUAGE))
    language_model = _language_model(config, language, tokenizer, at)
    own = Part.of(tensors, PROJECTORS)
    before = own.prefix(PROJECTORS)
    select, dropped = _STRATEGIES[config.vision_feature_select_strategy]
    known = (*LANGUAGE, *TOWERS, *PROJECTORS)
    return WholeModel(
        at=folder.path.name,
        family=family,
        language_model=language_model,
        language=language,
        tower=tower,
        projection=ProjectorConfig(kind="mlp2x_gelu", input_size=tower.hidden_size, hidden_size=language_model.hidden),
        projector=own,
        projector_rules=tuple(
            Rename(f"{before}{layer}.{kind}", f"{projector.PREFIX}{place}.{kind}")
            for layer, place in PROJECTED.items()
            for kind in ("weight", "bias")
        ),
        tokenizer=tokenizer,
        select_layer=config.vision_feature_layer,
        select_feature=select,
        dropped=dropped,
        others=tuple(name for name in tensors.infos() if not name.startswith(known)),
        settings=json.dumps(document, sort_keys=True).encode(),
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


def _tower(folder: HuggingFaceFolder, config: _Llava, own: Part, at: str) -> Tower:
    kind, _ = TYPES[config.vision_config.get("model_type", "clip_vision_model")]
    sizes = validated(kind, config.vision_config, f"{at}: vision_config")
    settings, _ = processor_settings(folder)
    preprocessing = read_preprocessing(folder, sizes, "pad" if settings.get("do_pad") is True else "square")
    rules = vit.rules(sizes, own.infos, before=own.prefix(TOWERS))
    return Tower(sizes, preprocessing, own.source, own.infos, rules, trained=True, opened=ExitStack())


def _language_model(config: _Llava, own: Part, tokenizer: FolderTokenizer, at: str) -> LanguageModel:
    inherited = {"model_type": "llama", "tie_word_embeddings": config.tie_word_embeddings}
    names = {name: _renamed(name) for name in own.infos}
    model = describe(inherited | config.text_config, own.infos, names, at=f"{at}: text_config")
    require_rows(model.rows, tokenizer.converted.vocab_size, at=f"{at}: text_config.vocab_size")
    return model


def _renamed(name: str) -> str:
    before = next(prefix for prefix in LANGUAGE if name.startswith(prefix))
    return LANGUAGE[before] + name.removeprefix(before)
