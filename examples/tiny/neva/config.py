"""The tiny NeVA's `model_config.yaml`: NeMo's llava_config at the tiny sizes."""

from typing import Any

from tiny import configs
from tiny.languages import Sizes
from tiny.neva import model as tiny

SIZES = Sizes(vocab=tiny.VOCAB, layers=tiny.LAYERS, hidden=tiny.HIDDEN, ffn=tiny.FFN, groups=tiny.GROUPS)


def model_config(*, distributed: bool) -> dict[str, Any]:
    """NeMo's `model` section, resolved as NeMo saves it; the tokenizer's file is filled in by the archive's writer.

    Args:
        distributed: The configuration of the archive with distributed weights, as NeMo 2 writes it, its tower trained
            and so inside the archive. Else that of an archive of NeMo 1.23, the last that wrote `model_weights.ckpt`
            for such a model, its tower frozen and so found by `mm_cfg.vision_encoder.from_pretrained`: a folder beside
            the archive.
    """
    return configs.multimodal_config(
        SIZES,
        mm_cfg={
            "llm": {"from_pretrained": None, "freeze": False, "model_type": "nvgpt"},
            "vision_encoder": configs.vision_encoder("clip", freeze=not distributed),
            "pretrain_mm_mlp_adapter": None,
            "mm_mlp_adapter_type": "mlp2x_gelu",
            "use_im_start_end": False,
        },
        data={"conv_template": "nv_dpo", "image_token_len": tiny.PATCHES},
        distributed=distributed,
    )
