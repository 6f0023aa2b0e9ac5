"""A random tiny NeVA engine, in the layout that the builder publishes; made with transformers, not with the builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from multimodal_api.engine import MODEL_DIR
from multimodal_recipes.recipe import LLM_DIR, PROJECTOR_DIR, RECIPE_NAME, VISION_DIR, ProjectorConfig
from support.tiny_engine import IMAGE_SIZE, PATCH, RECIPE, build_inputs, write_manifest
from support.tiny_tokenizer import write_tokenizer

HIDDEN: Final = 32
VISION_HIDDEN: Final = 24
PADDED_VOCAB: Final = 384


def make_model(model_dir: Path, *, seed: int = 0) -> None:
    """Write the canonical model."""
    torch.manual_seed(seed)
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=PADDED_VOCAB,
            hidden_size=HIDDEN,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=RECIPE.max_positions,
            initializer_range=0.3,
        )
    )
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=VISION_HIDDEN,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=IMAGE_SIZE,
            patch_size=PATCH,
            initializer_range=0.3,
            initializer_factor=5.0,
        )
    )
    llm.save_pretrained(model_dir / LLM_DIR)
    vision.save_pretrained(model_dir / VISION_DIR)
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=IMAGE_SIZE).save_pretrained(
        model_dir / VISION_DIR
    )
    write_tokenizer(model_dir / LLM_DIR / "tokenizer.json")
    projector = model_dir / PROJECTOR_DIR
    projector.mkdir()
    config = ProjectorConfig(kind="mlp2x_gelu", input_size=VISION_HIDDEN, hidden_size=HIDDEN)
    (projector / "config.json").write_text(config.model_dump_json(by_alias=True))
    weights: dict[str, Any] = {
        "mm_projector.0.weight": torch.randn(HIDDEN, VISION_HIDDEN),
        "mm_projector.0.bias": torch.randn(HIDDEN),
        "mm_projector.2.weight": torch.randn(HIDDEN, HIDDEN) * 0.3,
        "mm_projector.2.bias": torch.randn(HIDDEN),
    }
    save_file(weights, projector / "model.safetensors")
    (model_dir / RECIPE_NAME).write_text(RECIPE.model_dump_json(by_alias=True))


def make_engine(store: Path, **size_changes: int) -> Path:
    """Write an engine into a store and give its folder."""
    inputs = build_inputs(**size_changes)
    engine = store / inputs.key()
    make_model(engine / MODEL_DIR)
    write_manifest(engine, inputs)
    return engine
