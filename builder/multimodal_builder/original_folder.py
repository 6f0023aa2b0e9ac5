"""Folders of LLaVA's own code: a language model with a projector and, where it was trained, a tower in its weights.

Source: `llava/model/llava_arch.py` and `llava/model/builder.py` of LLaVA 1.5.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict

from multimodal_api.families import Family, LlmType
from multimodal_builder.checkpoints.ckpt import CkptSource
from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.huggingface import CONFIG_NAME, find_folder
from multimodal_builder.language_folder import describe
from multimodal_builder.mappings import projector, vit
from multimodal_builder.original_config import ASPECT_KEY, OriginalConfig, read_original_config
from multimodal_builder.plan import require_rows
from multimodal_builder.preprocessor import read_preprocessing
from multimodal_builder.spliced_tokenizer import read_spliced_tokenizer
from multimodal_builder.tower_config import read_tower_config, validated
from multimodal_builder.towers import Tower
from multimodal_builder.whole_model import Part, WholeModel, require
from multimodal_recipes.recipe import ProjectorConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multimodal_builder.checkpoints.hub import Hub
    from multimodal_builder.checkpoints.huggingface import HuggingFaceFolder
    from multimodal_builder.checkpoints.tensors import TensorSource
    from multimodal_builder.folder_tokenizer import FolderTokenizer
    from multimodal_builder.mappings.language_model import LanguageModel

TOWER_KEY: Final = "mm_vision_tower"
BESIDE: Final = "mm_projector.bin"
"""The projector in a file of its own."""
_FAMILIES: Final = (Family.NEVA, Family.VILA)
_TOWER: Final = "model.vision_tower.vision_tower."
_PROJECTORS: Final = ("model.mm_projector.", "mm_projector.")
_MEDIA: Final = ("model.mm_projector.", "model.vision_tower.")
_LANGUAGE: Final = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")
_OTHERS: Final = ("mm_", "image_", "tokenizer_", "use_mm_", "tune_", "freeze_", "unfreeze_", "pretrain_mm_")
"""How keys of `config.json` begin that say nothing of the language model."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    mm_vision_tower: str
    mm_projector_type: str = "linear"


def read_original(
    folder: HuggingFaceFolder, family: Family, llm_type: LlmType, hub: Hub | None, opened: ExitStack
) -> WholeModel:
    """Read such a folder's configurations and headers.

    Args:
        folder: The model's.
        family: Wanted.
        llm_type: Wanted.
        hub: Has the tower, where it is not beside the folder.
        opened: Closes the tower's files.

    Raises:
        ProductError: a file is missing or damaged, or the model is one that this version cannot convert.
    """
    require("a LLaVA of its own code", (family, llm_type), _FAMILIES, (LlmType.LLAMA,))
    at = f"{folder.path.name}/{CONFIG_NAME}"
    document = folder.json(CONFIG_NAME)
    config = read_original_config(document, at)
    settings = validated(_Settings, document, at)
    tensors = folder.tensors()
    tokenizer = read_spliced_tokenizer(folder, family, start_end=config.start_end)
    language = Part.of(tensors, _LANGUAGE)
    language_model = _language_model(document, language, tokenizer, at)
    named = find_folder(settings.mm_vision_tower, folder.path, hub, key=TOWER_KEY)
    opened.callback(named.close)
    tower = _tower(named, tensors, config, f"{at}: {ASPECT_KEY}")
    projection = _projection(settings, tower, language_model, at)
    own = _projector(folder, tensors)
    return WholeModel(
        at=folder.path.name,
        family=family,
        language_model=language_model,
        language=language,
        tower=tower,
        projection=projection,
        projector=own,
        projector_rules=projector.rules(projection, own.prefix(_PROJECTORS)),
        tokenizer=tokenizer,
        select_layer=config.select_layer,
        select_feature=config.select_feature,
        dropped=config.dropped,
        others=tuple(name for name in tensors.infos() if not name.startswith((*_LANGUAGE, *_MEDIA))),
        settings=json.dumps([document, named.json(CONFIG_NAME)], sort_keys=True).encode(),
    )


def _language_model(document: Mapping[str, Any], language: Part, tokenizer: FolderTokenizer, at: str) -> LanguageModel:
    own = {key: value for key, value in document.items() if not key.startswith(_OTHERS)}
    model = describe(own | {"model_type": "llama"}, language.infos, {}, at=at)
    require_rows(model.rows, tokenizer.converted.vocab_size, at=f"{at}: vocab_size")
    return model


def _tower(named: HuggingFaceFolder, tensors: TensorSource, config: OriginalConfig, key: str) -> Tower:
    """Take the tower that the configuration names, with the weights of the checkpoint where it holds some."""
    sizes = read_tower_config(named)
    preprocessing = read_preprocessing(named, sizes, config.aspect, key=key)
    inside = Part.of(tensors, ("model.vision_tower.",))
    trained = bool(inside.infos)
    own = inside if trained else Part.of(named.tensors())
    rules = vit.rules(sizes, own.infos, before=_TOWER if trained else "")
    return Tower(sizes, preprocessing, own.source, own.infos, rules, trained=trained, opened=ExitStack())


def _projection(settings: _Settings, tower: Tower, model: LanguageModel, at: str) -> ProjectorConfig:
    kind = settings.mm_projector_type
    config = ProjectorConfig(kind=kind, input_size=tower.hidden_size, hidden_size=model.hidden)
    if kind not in {"linear", "identity"} and config.mlp_depth is None:
        raise config_error(
            f"{at}: mm_projector_type",
            f"is {kind[:60]!r}, but this version takes linear, mlp<N>x_gelu or identity",
            "use another model",
        )
    return config


def _projector(folder: HuggingFaceFolder, tensors: TensorSource) -> Part:
    """Take the projector from the weights, and from its own file where they have none."""
    inside = Part.of(tensors, _PROJECTORS)
    if inside.infos or not (folder.path / BESIDE).is_file():
        return inside
    return Part.of(CkptSource(folder.file(BESIDE)))
