"""Rows of a picture at the sizes of NeMo's shipped configurations, which no test trains."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast

import pytest

from multimodal_api.errors import ProductError
from multimodal_builder.preprocessor import clip_preprocessing
from multimodal_builder.tower_config import ClipConfig, SiglipConfig, TowerConfig
from multimodal_builder.towers import Tower
from multimodal_builder.vision import projector_config, vision_recipe
from support.settings import model_config

CLIP_L_336 = ClipConfig(hidden_size=1024, image_size=336, patch_size=14)
CLIP_L_224 = ClipConfig(hidden_size=1024, image_size=224, patch_size=14)
SIGLIP_384 = SiglipConfig(hidden_size=1152, image_size=384, patch_size=14)


def rows(tower: TowerConfig, projector: str, **vision: Any) -> int:
    found = Tower(tower, clip_preprocessing(tower), cast("Any", None), {}, (), trained=False, opened=ExitStack())
    vision_encoder = {"from_pretrained": "x", **vision}
    config = model_config(mm_cfg={"vision_encoder": vision_encoder, "mm_mlp_adapter_type": projector})
    return vision_recipe(config, found, projector_config(config, found), None).tokens_per_image


@pytest.mark.parametrize(
    ("tower", "projector", "vision", "expected"),
    [
        (CLIP_L_224, "linear", {}, 256),  # neva, video-neva
        (CLIP_L_336, "mlp2x_gelu", {}, 576),  # llava, lita
        (CLIP_L_336, "mlp2x_gelu", {"vision_select_feature": "cls_patch"}, 577),  # what the removed exporter did
        (CLIP_L_336, "mlp_downsample", {}, 144),
        (SIGLIP_384, "mlp_downsample", {"vision_select_feature": "cls_patch"}, 196),  # vita, vila
        (SIGLIP_384, "mlp_downsample", {"class_token_length": 0}, 196),  # neva_mixtral
        (SIGLIP_384, "mlp2x_gelu", {"class_token_length": 0}, 729),
    ],
)
def test_rows_of_a_picture(tower: TowerConfig, projector: str, vision: dict[str, Any], expected: int) -> None:
    assert rows(tower, projector, **vision) == expected


@pytest.mark.parametrize(
    ("tower", "vision", "says"),
    [
        (SIGLIP_384, {}, "728 tokens of a picture are no square"),
        (CLIP_L_336, {"vision_select_feature": "cls_patch"}, "577 tokens"),
        (CLIP_L_336, {"class_token_length": 577}, "1 class tokens and 576 patches"),
    ],
)
def test_tokens_that_cannot_be_joined_are_refused(tower: TowerConfig, vision: dict[str, Any], says: str) -> None:
    with pytest.raises(ProductError, match=says):
        rows(tower, "mlp_downsample", **vision)
