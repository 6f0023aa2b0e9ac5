"""From a checkpoint's configuration, its tower and its projector to the recipe of pictures, and what contradicts it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multimodal_builder.checkpoints.config import CONFIG_NAME, config_error
from multimodal_builder.video import check_grid
from multimodal_recipes.recipe import FeatureSelect, ProjectorConfig, VisionRecipe

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.config import ModelConfig
    from multimodal_builder.towers import Tower
    from multimodal_recipes.recipe import VideoRecipe


def projector_config(config: ModelConfig, tower: Tower) -> ProjectorConfig:
    """Size the projector.

    Raises:
        ProductError: there is none, and tower and language model differ in width.
    """
    projector = ProjectorConfig(
        kind=config.mm_cfg.mm_mlp_adapter_type, input_size=tower.hidden_size, hidden_size=config.hidden_size
    )
    if projector.kind == "identity" and projector.input_size != projector.hidden_size:
        raise config_error(
            f"{CONFIG_NAME}: mm_cfg.mm_mlp_adapter_type",
            f"is 'identity', but the tower is {tower.hidden_size} wide and the language model {config.hidden_size}",
            "correct it: NeMo could not have trained this",
        )
    return projector


def vision_recipe(
    config: ModelConfig, tower: Tower, projector: ProjectorConfig, video: VideoRecipe | None
) -> VisionRecipe:
    """Decide which of the tower's tokens are taken, and how many rows a picture becomes.

    Raises:
        ProductError: no tokens are left, or the projector cannot take so many.
    """
    vision = config.mm_cfg.vision_encoder
    select = FeatureSelect(vision.vision_select_feature)
    dropped = vision.class_token_length if select is FeatureSelect.PATCH else 0
    tokens = tower.class_tokens + tower.patches - dropped
    at = f"{CONFIG_NAME}: mm_cfg.vision_encoder.class_token_length"
    found = f"the tower has {tower.class_tokens} class tokens and {tower.patches} patches"
    if tokens < 1:
        raise config_error(at, f"is {dropped}, but {found}", "correct it")
    try:
        rows = projector.rows(tokens)
    except ValueError as error:
        raise config_error(
            at, f"with {select} and {dropped}, {error}: {found}", "correct it, or vision_select_feature"
        ) from error
    recipe = VisionRecipe(
        preprocessing=tower.preprocessing,
        select_layer=vision.vision_select_layer,
        select_feature=select,
        class_token_length=vision.class_token_length,
        tokens_per_image=rows,
        video=video,
    )
    check_grid(recipe)
    return recipe
