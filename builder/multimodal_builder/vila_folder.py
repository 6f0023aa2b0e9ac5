"""VILA's folders: `llm/`, `vision_tower/` and `mm_projector/` below one `config.json`.

Source: `llava/model` of VILA 1.5 (May 2024) to LongVILA (August 2024). Their `mlp_downsample` leaves its joined tokens
column by column, as NeMo 1's does (`flat_square` of `multimodal_projector/base_projector.py`); that of NVILA (December
2024) turns them back. NVILA's folders name an `image_encoder`, and are refused.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict

from multimodal_api.families import Family, LlmType
from multimodal_builder.checkpoints.config import config_error
from multimodal_builder.checkpoints.huggingface import CONFIG_NAME, HuggingFaceFolder
from multimodal_builder.language_folder import KINDS, describe
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
    from multimodal_builder.folder_tokenizer import FolderTokenizer
    from multimodal_builder.mappings.language_model import LanguageModel

LLM, _TOWER, _PROJECTOR = "llm", "vision_tower", "mm_projector"
"""Folders."""
FAMILIES: Final = (Family.NEVA, Family.VILA)
_LAYERS: Final = "layers."
"""In front of the names of the projector's tensors."""
_KINDS: Final = ("linear", "identity", "mlp_downsample")
"""Of projectors, beside `mlpNx_gelu`."""


class _Projector(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    mm_projector_type: str


def read_vila(folder: HuggingFaceFolder, family: Family, llm_type: LlmType, opened: ExitStack) -> WholeModel:
    """Read such a folder's configurations and headers.

    Args:
        folder: The outer one.
        family: Wanted.
        llm_type: Wanted.
        opened: Closes the inner ones.

    Raises:
        ProductError: a file is missing or damaged, or the model is one that this version cannot convert.
    """
    at = f"{folder.path.name}/{CONFIG_NAME}"
    document = folder.json(CONFIG_NAME)
    config = read_original_config(document, at)
    llm, vision, projection = (_inner(folder, name, opened) for name in (LLM, _TOWER, _PROJECTOR))
    language = Part.of(llm.tensors())
    tokenizer = read_spliced_tokenizer(llm, family, start_end=config.start_end)
    language_model = _language_model(llm, language, tokenizer, (family, llm_type))
    tower = _tower(vision, config, f"{at}: {ASPECT_KEY}")
    projecting = _projection(projection, tower, language_model)
    own = Part.of(projection.tensors()) if projecting.kind != "identity" else Part(language.source, {})
    return WholeModel(
        at=folder.path.name,
        family=family,
        language_model=language_model,
        language=language,
        tower=tower,
        projection=projecting,
        projector=own,
        projector_rules=projector.rules(projecting, _LAYERS),
        tokenizer=tokenizer,
        select_layer=config.select_layer,
        select_feature=config.select_feature,
        dropped=config.dropped,
        others=(),
        settings=json.dumps(
            [document, *(inner.json(CONFIG_NAME) for inner in (llm, vision, projection))], sort_keys=True
        ).encode(),
    )


def _inner(folder: HuggingFaceFolder, name: str, opened: ExitStack) -> HuggingFaceFolder:
    inner = HuggingFaceFolder(folder.path / name)
    opened.callback(inner.close)
    return inner


def _language_model(
    llm: HuggingFaceFolder, language: Part, tokenizer: FolderTokenizer, wanted: tuple[Family, LlmType]
) -> LanguageModel:
    at = f"{LLM}/{CONFIG_NAME}"
    model = describe(llm.json(CONFIG_NAME), language.infos, {}, at=at)
    require("this VILA", wanted, FAMILIES, KINDS[model.config["model_type"]].types)
    require_rows(model.rows, tokenizer.converted.vocab_size, at=f"{at}: vocab_size")
    return model


def _tower(vision: HuggingFaceFolder, config: OriginalConfig, key: str) -> Tower:
    sizes = read_tower_config(vision)
    preprocessing = read_preprocessing(vision, sizes, config.aspect, key=key)
    own = Part.of(vision.tensors())
    rules = vit.rules(sizes, own.infos, before="")
    return Tower(sizes, preprocessing, own.source, own.infos, rules, trained=True, opened=ExitStack())


def _projection(folder: HuggingFaceFolder, tower: Tower, model: LanguageModel) -> ProjectorConfig:
    at = f"{_PROJECTOR}/{CONFIG_NAME}"
    kind = validated(_Projector, folder.json(CONFIG_NAME), at).mm_projector_type
    config = ProjectorConfig(kind=kind, input_size=tower.hidden_size, hidden_size=model.hidden)
    if kind not in _KINDS and config.mlp_depth is None:
        raise config_error(
            f"{at}: mm_projector_type",
            f"is {kind[:60]!r}, but this version takes mlp<N>x_gelu, {', '.join(_KINDS)}",
            "use another model",
        )
    return config
