"""What is known of the random tiny NeVA engine without its weights; `tiny_model` makes those."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from multimodal_api.engine import (
    ENGINE_FORMAT,
    MANIFEST_NAME,
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
    FeatureSelect,
    FrameResize,
    ImagePreprocessing,
    PromptTemplate,
    Recipe,
    VisionRecipe,
)
from support.tiny_tokenizer import VOCAB

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
        before="<extra_id_0>System\n\n",
        turn="<extra_id_1>User\n{text}\n<extra_id_1>Assistant\n",
        between="\n",
        medium="{media}\n",
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
