"""`model_config.yaml`: the keys of NeMo's multimodal configurations that describe a model, at the tiny sizes."""

from typing import Any, Final

from tiny.languages import Sizes

NEVA_TARGET: Final = "nemo.collections.multimodal.models.multimodal_llm.neva.neva_model.MegatronNevaModel"
CLASSIC_VERSION: Final = "1.23.0"
"""The last NeMo that wrote `model_weights.ckpt` for such models."""
DISTRIBUTED_VERSION: Final = "2.2.1"

SENTENCEPIECE: Final = {
    "library": "sentencepiece",
    "type": None,
    "model": None,
    "vocab_file": None,
    "merge_file": None,
    "delimiter": None,
    "sentencepiece_legacy": False,
    "additional_special_tokens": None,
}
"""The file is filled in by the archive's writer."""


def language_keys(sizes: Sizes) -> dict[str, Any]:
    """What describes a Llama; other models change some."""
    return {
        "mcore_gpt": True,
        "encoder_seq_length": sizes.positions,
        "max_position_embeddings": sizes.positions,
        "position_embedding_type": "rope",
        "num_layers": sizes.layers,
        "hidden_size": sizes.hidden,
        "ffn_hidden_size": sizes.ffn,
        "num_attention_heads": sizes.heads,
        # Files of models without groups carry null here.
        "num_query_groups": None if sizes.groups == sizes.heads else sizes.groups,
        "init_method_std": 0.014,
        "use_scaled_init_method": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "ffn_dropout": 0.0,
        "kv_channels": None,
        "apply_query_key_layer_scaling": False,
        "normalization": "rmsnorm",
        "layernorm_epsilon": 1e-5,
        "do_layer_norm_weight_decay": False,
        "make_vocab_size_divisible_by": 128,
        "pre_process": True,
        "post_process": True,
        "persist_layer_norm": True,
        "bias": False,
        "activation": "fast-swiglu",
        "headscale": False,
        "transformer_block_type": "pre_ln",
        "normalize_attention_scores": True,
        "rotary_percentage": 1.0,
        "rotary_base": sizes.rotary_base if sizes.rotary_base % 1 else int(sizes.rotary_base),
        "attention_type": "multihead",
        "share_embeddings_and_output_weights": False,
        "seq_len_interpolation_factor": None,
        "sequence_parallel": False,
        "openai_gelu": False,
        "megatron_legacy": False,
        "transformer_engine": True,
        "megatron_amp_O2": False,
        "seed": 1234,
        "resume_from_checkpoint": None,
    }


def vision_encoder(from_pretrained: str, *, freeze: bool, **changes: object) -> dict[str, Any]:
    """`mm_cfg.vision_encoder` of a tiny tower.

    Args:
        from_pretrained: Its folder, relative to the archive.
        freeze: Whether its weights stay there; a trained tower lies in the archive.
        **changes: Keys unlike a CLIP's.
    """
    tower: dict[str, Any] = {
        "from_pretrained": from_pretrained,
        "from_hf": True,
        "patch_dim": 8,
        "crop_size": [48, 48],
        "hidden_size": 64,
        "vision_select_layer": -2,
        "vision_select_feature": "patch",
        "class_token_length": 1,
        "freeze": freeze,
    }
    return tower | changes


def multimodal_config(
    sizes: Sizes, *, mm_cfg: dict[str, Any], data: dict[str, Any], distributed: bool, **changes: object
) -> dict[str, Any]:
    """NeMo's `model` section of a model of the NeVA kind, resolved as NeMo saves it.

    Args:
        sizes: Of the language model.
        mm_cfg: The multimodal part.
        data: What differs from a model of pictures: template, media, aspect.
        distributed: Whether the weights are distributed, as NeMo 2 writes them.
        **changes: Keys unlike a Llama's, and a tokenizer that is no SentencePiece model.
    """
    config: dict[str, Any] = {
        "precision": 32,
        "micro_batch_size": 16,
        "global_batch_size": 128,
        "tensor_model_parallel_size": sizes.ranks,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "restore_from_path": None,
        "mm_cfg": mm_cfg,
        **language_keys(sizes),
        "tokenizer": SENTENCEPIECE,
        "data": {
            "num_workers": 8,
            "dataloader_type": "cyclic",
            "data_path": None,
            "lazy_preprocess": True,
            "is_multimodal": True,
            "media_type": "image",
            "sep_image_conv_front": False,
            "image_token_len": 36,
            "conv_template": "nvgpt",
            "image_folder": None,
            "image_aspect_ratio": "square",
            **data,
        },
        "target": NEVA_TARGET,
        "nemo_version": DISTRIBUTED_VERSION if distributed else CLASSIC_VERSION,
    }
    return config | changes
