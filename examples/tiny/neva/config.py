"""The tiny NeVA's `model_config.yaml`: the keys of NeMo's llava_config that describe a model, at the tiny sizes."""

from typing import Any

from tiny.neva import model as tiny


def model_config(*, distributed: bool) -> dict[str, Any]:
    """NeMo's `model` section, resolved as NeMo saves it; the tokenizer's file is filled in by the archive's writer.

    Args:
        distributed: The configuration of the archive with distributed weights, as NeMo 2 writes it, its tower trained
            and so inside the archive. Else that of an archive of NeMo 1.23, the last that wrote `model_weights.ckpt`
            for such a model, its tower frozen and so found by `mm_cfg.vision_encoder.from_pretrained`: a folder beside
            the archive.
    """
    return {
        "precision": 32,
        "micro_batch_size": 16,
        "global_batch_size": 128,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "restore_from_path": None,
        "mm_cfg": {
            "llm": {"from_pretrained": None, "freeze": False, "model_type": "nvgpt"},
            "vision_encoder": {
                "from_pretrained": "clip",
                "from_hf": True,
                "patch_dim": tiny.PATCH,
                "crop_size": [tiny.CROP, tiny.CROP],
                "hidden_size": tiny.TOWER_WIDTH,
                "vision_select_layer": -2,
                "vision_select_feature": "patch",
                "class_token_length": 1,
                "freeze": not distributed,
            },
            "pretrain_mm_mlp_adapter": None,
            "mm_mlp_adapter_type": "mlp2x_gelu",
            "use_im_start_end": False,
        },
        "mcore_gpt": True,
        "encoder_seq_length": tiny.CONTEXT,
        "max_position_embeddings": tiny.CONTEXT,
        "position_embedding_type": "rope",
        "num_layers": tiny.LAYERS,
        "hidden_size": tiny.HIDDEN,
        "ffn_hidden_size": tiny.FFN,
        "num_attention_heads": tiny.HEADS,
        "num_query_groups": tiny.GROUPS,
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
        "rotary_base": 10000,
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
        "tokenizer": {
            "library": "sentencepiece",
            "type": None,
            "model": None,
            "vocab_file": None,
            "merge_file": None,
            "delimiter": None,
            "sentencepiece_legacy": False,
            "additional_special_tokens": None,
        },
        "data": {
            "num_workers": 8,
            "dataloader_type": "cyclic",
            "data_path": None,
            "lazy_preprocess": True,
            "is_multimodal": True,
            "media_type": "image",
            "sep_image_conv_front": False,
            "image_token_len": tiny.PATCHES,
            "conv_template": "nv_dpo",
            "image_folder": None,
            "image_aspect_ratio": "square",
        },
        "target": "nemo.collections.multimodal.models.multimodal_llm.neva.neva_model.MegatronNevaModel",
        "nemo_version": "2.2.1" if distributed else "1.23.0",
    }
