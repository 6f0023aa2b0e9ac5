"""What a deployment changes of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_recipes.recipe import Recipe

if TYPE_CHECKING:
    from multimodal_api.overrides import Overrides


def overridden(recipe: Recipe, overrides: Overrides) -> Recipe:
    """Give a recipe with a deployment's changes.

    Args:
        recipe: of the engine.
        overrides: of the deployment.

    Raises:
        ProductError: the model takes no such media, or what comes out is no recipe.
    """
    changed = recipe.model_dump()
    changed["template"] |= overrides.prompt.template.model_dump(exclude_none=True)
    if overrides.prompt.stop_strings is not None:
        changed["stop_strings"] = tuple(overrides.prompt.stop_strings)
    preprocessing = overrides.preprocessing
    if preprocessing.resize is not None:
        _part(changed, "vision", at="resize", takes="pictures")["preprocessing"]["resize"] = preprocessing.resize.value
    if preprocessing.num_frames is not None:
        vision = _part(changed, "vision", at="numFrames", takes="videos")
        _part(vision, "video", at="numFrames", takes="videos")["num_frames"] = preprocessing.num_frames
    try:
        return Recipe.model_validate(changed)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(("prompt", *map(str, first["loc"]))) if first["loc"][0] == "template" else "preprocessing"
        raise _invalid(place, f"cannot be so: {first['msg']}", "see recipe.json of the engine") from None


def _part(of: dict[str, Any], name: str, *, at: str, takes: str) -> dict[str, Any]:
    found: dict[str, Any] | None = of[name]
    if found is None:
        raise _invalid(f"preprocessing.{at}", f"is given, and this model takes no {takes}", "remove it")
    return found


def _invalid(at: str, problem: str, remedy: str) -> ProductError:
    return ProductError(Reason.INVALID, at=f"spec.{at}", problem=problem, remedy=remedy)
