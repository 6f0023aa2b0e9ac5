"""A random tiny NeVA engine, in the layout that the builder publishes; made with transformers, not with the builder."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from multimodal_api.engine import (
    ENGINE_FORMAT,
    MANIFEST_NAME,
    MODEL_DIR,
    Backend,
    BuildInputs,
    Dtype,
    EngineFile,
    Limits,
    Manifest,
    SourceIdentity,
)
from multimodal_api.families import Family, LlmType
from multimodal_recipes.recipe import (
    LLM_DIR,
    PROJECTOR_DIR,
    RECIPE_NAME,
    VISION_DIR,
    FeatureSelect,
    FrameResize,
    ImagePreprocessing,
    ProjectorConfig,
    PromptTemplate,
    Recipe,
    VisionRecipe,
)
from tests.support.tiny_tokenizer import VOCAB, write_tokenizer

IMAGE_SIZE: Final = 28
PATCH: Final = 7
TOKENS_PER_IMAGE: Final = (IMAGE_SIZE // PATCH) ** 2
HIDDEN: Final = 32
VISION_HIDDEN: Final = 24
PADDED_VOCAB: Final = 384
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)

RECIPE: Final = Recipe(
    family=Family.NEVA,
    template=PromptTemplate(
        before="<extra_id_0>System\n\n<extra_id_1>User\n",
        after="\n{text}\n<extra_id_1>Assistant\n",
        default_text="Hi! What is in this image?",
    ),
    vision=VisionRecipe(
        preprocessing=ImagePreprocessing(
            resize=FrameResize.SHORTEST_EDGE_CROP,
            shortest_edge=IMAGE_SIZE,
            image_size=IMAGE_SIZE,
            resample=3,
            rescale=1 / 255,
            mean=MEAN,
            std=STD,
        ),
        select_layer=-2,
        select_feature=FeatureSelect.PATCH,
        class_token_length=1,
        tokens_per_image=TOKENS_PER_IMAGE,
    ),
    vocab_size=VOCAB,
    eos_token_ids=(2,),
    stop_strings=("<extra_id_1>", "STOP"),
    add_bos=False,
    max_positions=256,
)


def limits(**changes: int) -> Limits:
    sizes = {
        "max_input_len": 128,
        "max_output_len": 64,
        "max_batch_size": 4,
        "max_multimodal_len": 64,
        "vision_max_batch_size": 2,
    }
    return Limits(**(sizes | changes))


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


def build_inputs(**size_changes: int) -> BuildInputs:
    return BuildInputs(
        family=Family.NEVA,
        llm_type=LlmType.LLAMA,
        visual_checkpoint=SourceIdentity(kind="pvc", location="claim", path="tiny.nemo"),
        num_gpus=0,
        dtype=Dtype.FLOAT32,
        backend=Backend.TORCH,
        limits=limits(**size_changes),
    )


def make_engine(store: Path, **size_changes: int) -> Path:
    """Write an engine into a store and give its folder."""
    inputs = build_inputs(**size_changes)
    engine = store / inputs.key()
    make_model(engine / MODEL_DIR)
    write_manifest(engine, inputs)
    return engine


def write_manifest(engine: Path, inputs: BuildInputs) -> None:
    files = [path for path in sorted(engine.rglob("*")) if path.is_file() and path.name != MANIFEST_NAME]
    manifest = Manifest(
        engine_format=ENGINE_FORMAT,
        key=inputs.key(),
        inputs=inputs,
        checkpoint_sha256="0" * 64,
        builder_version="test",
        built_at=datetime.now(UTC),
        files=tuple(
            EngineFile(
                path=path.relative_to(engine).as_posix(),
                size=path.stat().st_size,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            for path in files
        ),
    )
    (engine / MANIFEST_NAME).write_text(manifest.model_dump_json(by_alias=True))
