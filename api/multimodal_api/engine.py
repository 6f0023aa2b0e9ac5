"""What decides an engine's bytes, the key made from it, and the manifest that makes a directory an engine."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, StringConstraints

from multimodal_api.base import Model, OpenModel
from multimodal_api.families import Family, LlmType

ENGINE_FORMAT: Final = 2
"""Raised when a published engine's layout changes, so that old engines are rebuilt and never misread."""

KEY_LENGTH: Final = 16
"""Hexadecimal digits of an engine key: 64 bits, far beyond the number of engines one store holds."""

EngineKey = Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{KEY_LENGTH}}}$")]

MANIFEST_NAME: Final = "manifest.json"
MODEL_DIR: Final = "model"
"""Folder of the canonical model inside an engine."""


class Backend(StrEnum):
    """Engines that run the language model; `auto` is resolved before a key is made."""

    TORCH = "torch"
    VLLM = "vllm"
    TENSORRT_LLM = "tensorrt-llm"


class Dtype(StrEnum):
    """Floating-point type of weights and arithmetic."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class Quantization(StrEnum):
    """Weight formats below 16 bits."""

    NONE = "none"
    FP8 = "fp8"
    INT8 = "int8"


class TokenLimits(Model):
    """Sizes an engine is built for; requests beyond them are refused."""

    max_input_len: Annotated[int, Field(ge=1, le=1_048_576)] = 4096
    """Longest prompt, text and media together, in tokens."""
    max_output_len: Annotated[int, Field(ge=1, le=131_072)] = 256
    """Longest answer, in tokens."""
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = 1
    """Requests that run at once in one pod."""
    max_multimodal_len: Annotated[int, Field(ge=1, le=1_048_576)] = 3072
    """Positions that media may take in one prompt, in tokens."""


class Limits(TokenLimits):
    """All sizes, resolved."""

    vision_max_batch_size: Annotated[int, Field(ge=1, le=4096)]
    """Pictures or frames that the media encoder takes at once."""


class SourceIdentity(Model):
    """Where a checkpoint comes from, as far as it decides the engine: a reference, no content."""

    kind: str
    """`pvc`, `hf`, `uri` or `image`."""
    location: str
    """Claim name, repository, address or image reference."""
    path: str = ""
    """Path in the claim, or revision of the repository."""


class BuildInputs(Model):
    """Everything that decides an engine's bytes, and nothing else."""

    engine_format: int = ENGINE_FORMAT
    family: Family
    llm_type: LlmType
    visual_checkpoint: SourceIdentity
    llm_checkpoint: SourceIdentity | None = None
    lora_checkpoint: SourceIdentity | None = None
    num_gpus: Annotated[int, Field(ge=0)]
    dtype: Dtype
    backend: Backend
    quantization: Quantization = Quantization.NONE
    limits: Limits

    def key(self) -> EngineKey:
        """Digest the inputs in their canonical JSON form (sorted keys, no spaces), cut to `KEY_LENGTH` digits."""
        canonical = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:KEY_LENGTH]


class EngineFile(Model):
    """One file of an engine."""

    path: str
    """Relative to the engine's folder, `/` between parts."""
    size: Annotated[int, Field(ge=0)]
    """Bytes."""
    sha256: str


class Manifest(OpenModel):
    """Written last: a folder is an engine if and only if it holds a manifest that matches its files."""

    engine_format: int
    key: EngineKey
    inputs: BuildInputs
    checkpoint_sha256: str
    """Digest of the checkpoint as it was read in the conversion: its settings, and its values as they were written."""
    builder_version: str
    built_at: datetime
    files: tuple[EngineFile, ...]

    @property
    def size_bytes(self) -> int:
        """Sum of all file sizes."""
        return sum(file.size for file in self.files)
