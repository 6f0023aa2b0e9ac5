"""The merged form: one `LlavaForConditionalGeneration` folder, where transformers can hold the model."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.canonical import TORCH_DTYPES
from multimodal_builder.casts import STORED
from multimodal_builder.files import FileLog, sync_tree
from multimodal_builder.safetensors_writer import write_weights
from multimodal_recipes.recipe import LLM_DIR, PROJECTOR_DIR, VISION_DIR, FeatureSelect, ProjectorConfig

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_api.engine import Dtype
    from multimodal_builder.components import Component
    from multimodal_builder.plan import Plan
    from multimodal_recipes.recipe import VisionRecipe

PREFIXES: Final = {
    (LLM_DIR, ""): "language_model.",
    (VISION_DIR, ""): "vision_tower.",
    (PROJECTOR_DIR, "mm_projector.0."): "multi_modal_projector.linear_1.",
    (PROJECTOR_DIR, "mm_projector.2."): "multi_modal_projector.linear_2.",
}
"""What stands in front of a component's names, in place of what."""

EMBEDDING: Final = "model.embed_tokens.weight"
"""Of the language models that transformers' LLaVA takes: it finds their parts under Llama's names."""
UNSCALED: Final = ("gemma",)
"""Multiply what they look up, which NeMo's training does to media too (`multimodal_modeling.llm`); LLaVA does not."""

_STRATEGY: Final = {0: "full", 1: "default"}
"""`vision_feature_select_strategy` by the number of leading tokens that are dropped."""


def write_llava(plan: Plan, folder: Path, *, dtype: Dtype | None) -> None:
    """Write the model once more, merged.

    Args:
        plan: From headers.
        folder: Where to; must not exist.
        dtype: Type of all weights; None keeps each as it is.

    Raises:
        ProductError: transformers' LLaVA has no place for this language model, projector or selection of tokens.
    """
    parts = {component.folder: component for component in plan.components}
    _check(plan, ProjectorConfig.model_validate(parts[PROJECTOR_DIR].files["config.json"]))
    stored = STORED[dtype] if dtype else None
    tensors = [
        (_rename(component.folder, name), info)
        for component in plan.components
        for name, info in component.tensors(stored)
    ]
    values = chain.from_iterable(component.values(stored, lambda _: None) for component in plan.components)
    log = FileLog(folder)
    write_weights(folder, tensors, values, log)
    config = _config(plan, parts, dtype=TORCH_DTYPES[stored or parts[LLM_DIR].dtype])
    files = {**parts[VISION_DIR].files, **parts[LLM_DIR].files, "config.json": config}
    for name, content in files.items():
        log.write(folder / name, content)
    sync_tree(folder)


def _check(plan: Plan, projector: ProjectorConfig) -> None:
    language = plan.language_model
    if EMBEDDING not in language.parameters or language.config["model_type"] in UNSCALED:
        raise ProductError(
            Reason.UNSUPPORTED_MODEL,
            at="--layout llava",
            problem=f"transformers' LLaVA cannot hold a {language.config['architectures'][0]} as NeMo trains it",
            remedy="leave the option out: the canonical folder holds everything",
        )
    if plan.tokenizer.media_patch is None:
        raise ProductError(
            Reason.UNSUPPORTED_MODEL,
            at="--layout llava",
            problem="transformers' LLaVA needs a token for pictures, and this model's tokenizer has none",
            remedy="leave the option out: the canonical folder holds everything",
        )
    dropped = _dropped(plan.recipe.seeing())
    if plan.recipe.seeing().video is not None:
        raise ProductError(
            Reason.UNSUPPORTED_MODEL,
            at="--layout llava",
            problem=f"transformers' LLaVA takes pictures, and the family {plan.recipe.family} videos",
            remedy="leave the option out: the canonical folder holds everything",
        )
    if projector.kind != "mlp2x_gelu" or dropped not in _STRATEGY:
        raise ProductError(
            Reason.UNSUPPORTED_MODEL,
            at="--layout llava",
            problem=f"transformers' LLaVA cannot hold a projector {projector.kind} with {dropped} tokens dropped",
            remedy="leave the option out: the canonical folder holds everything",
        )


def _dropped(vision: VisionRecipe) -> int:
    return vision.class_token_length if vision.select_feature is FeatureSelect.PATCH else 0


def _rename(folder: str, name: str) -> str:
    old, new = next((old, new) for (part, old), new in PREFIXES.items() if part == folder and name.startswith(old))
    return new + name.removeprefix(old)


def _config(plan: Plan, parts: dict[str, Component], *, dtype: str) -> dict[str, Any]:
    text, vision = (parts[folder].files["config.json"] for folder in (LLM_DIR, VISION_DIR))
    seen = plan.recipe.seeing()
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": plan.tokenizer.media_patch,
        "image_seq_length": seen.tokens_per_image,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": seen.select_layer,
        "vision_feature_select_strategy": _STRATEGY[_dropped(seen)],
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": plan.language_model.tied,
        "torch_dtype": dtype,
    }
