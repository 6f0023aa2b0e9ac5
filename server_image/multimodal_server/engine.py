"""The engine on disk, as the front needs it: whole, of a format it knows, with recipe and tokenizer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from multimodal_api.engine import ENGINE_FORMAT, MANIFEST_NAME, MODEL_DIR, Manifest
from multimodal_api.errors import ProductError
from multimodal_api.overrides import Overrides
from multimodal_api.reasons import Reason
from multimodal_api.wire import AUDIO_INPUTS, VISION_INPUTS
from multimodal_recipes.overrides import overridden
from multimodal_recipes.recipe import LLM_DIR, RECIPE_NAME, Recipe
from multimodal_recipes.tokenizer import TOKENIZER_NAME, Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_api.engine import EngineFile, Limits
    from multimodal_api.wire import Tensor

HASHED_BYTES: Final = 2**20
"""Files up to this size (configurations) are hashed at every start; of larger ones the size is compared: reading all
weights twice would double the start. The builder hashes everything before it publishes."""

_REMEDY: Final = "delete the engine's folder in the store: the operator builds it again"


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """What the front knows of the engine."""

    manifest: Manifest
    recipe: Recipe
    tokenizer: Tokenizer
    stop_token_ids: frozenset[int]
    """Any of these ends an answer: the model's own, and the stop strings that are one token."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Tensors of a request over Triton."""
        return VISION_INPUTS if self.recipe.audio is None else AUDIO_INPUTS

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Stop strings that are no token: whoever reads an answer must look for them."""
        return tuple(stop for stop in self.recipe.stop_strings if not self.tokenizer.stop_ids((stop,)))

    @property
    def limits(self) -> Limits:
        """Sizes that requests are held to."""
        return self.manifest.inputs.limits


def open_engine(folder: Path, overrides: Overrides | None = None) -> ServedEngine:
    """Verify an engine and read what the front needs.

    Args:
        folder: of the engine.
        overrides: what the deployment changes of its recipe.

    Raises:
        ProductError: there is no engine, another format, files that do not match the manifest, or changes that the
            model does not take.
    """
    manifest = _read_manifest(folder)
    for file in manifest.files:
        _verify(folder, file)
    model = folder / MODEL_DIR
    recipe = overridden(_read_recipe(model / RECIPE_NAME), overrides or Overrides())
    tokenizer = Tokenizer(model / LLM_DIR / TOKENIZER_NAME, add_bos=recipe.add_bos)
    stops = tokenizer.stop_ids(recipe.stop_strings) | set(recipe.eos_token_ids)
    return ServedEngine(manifest, recipe, tokenizer, frozenset(stops))


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ProductError(
            Reason.ENGINE_NOT_FOUND,
            at=str(folder),
            problem=f"there is no {MANIFEST_NAME}: not an engine, or one whose build did not end",
            remedy="name a published engine, or let the operator build one",
        ) from None
    except (OSError, ValidationError) as error:
        raise _corrupt(path, str(error)) from error
    if manifest.engine_format != ENGINE_FORMAT:
        raise _corrupt(path, f"engine format {manifest.engine_format}, and this server reads {ENGINE_FORMAT}")
    return manifest


def _verify(folder: Path, file: EngineFile) -> None:
    path = folder / file.path
    try:
        size = path.stat().st_size
        if size != file.size:
            raise _corrupt(path, f"{size} bytes, and the manifest says {file.size}")
        if size <= HASHED_BYTES and hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
            raise _corrupt(path, "its content does not match the manifest")
    except OSError as error:
        raise _corrupt(path, str(error)) from error


def _read_recipe(path: Path) -> Recipe:
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _corrupt(path, str(error)) from error


def _corrupt(path: Path, problem: str) -> ProductError:
    return ProductError(Reason.ENGINE_CORRUPT, at=str(path), problem=problem, remedy=_REMEDY)
