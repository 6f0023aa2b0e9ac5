"""NeMo 2's `context/model.yaml`, translated into the keys of NeMo 1 that all else is written for.

The file is a tree of constructor calls: `_target_` names a class or function, the other keys are its arguments. It is
read as data; nothing is imported or called. Only the last part of a target's name is looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from multimodal_builder.checkpoints.config import config_error

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

WEIGHTS_FOLDER: Final = "weights"
CONTEXT_NAME: Final = "context/model.yaml"
TOKENIZER_FOLDER: Final = "context/nemo_tokenizer/"

LANGUAGE_KEYS: Final = {
    **{
        key: key
        for key in (
            *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"),
            *("kv_channels", "layernorm_epsilon", "layernorm_zero_centered_gamma", "position_embedding_type"),
            *("rotary_base", "rotary_interleaved", "seq_len_interpolation_factor", "window_size"),
            *("share_embeddings_and_output_weights", "num_moe_experts", "moe_router_topk"),
            "moe_router_pre_softmax",
            *("scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len"),
        )
    },
    "seq_length": "encoder_seq_length",
    "rotary_percent": "rotary_percentage",
    "add_bias_linear": "bias",
}
"""NeMo 2's keys of a language model that are NeMo 1's, under their own name or another."""

NORMALIZATIONS: Final = {"RMSNorm": "rmsnorm", "LayerNorm": "layernorm"}

ACTIVATIONS: Final = {
    # Function, and whether a gate goes with it: NeMo 1's name, and whether GELU is computed by its tanh approximation.
    ("silu", True): ("fast-swiglu", False),
    ("gelu", True): ("geglu", False),
    ("gelu", False): ("gelu", False),
    ("openai_gelu", True): ("geglu", True),
    ("openai_gelu", False): ("gelu", True),
    ("relu", True): ("reglu", False),
    ("squared_relu", False): ("squared-relu", False),
}

TOWER_KEYS: Final = {
    **{
        key: key
        for key in (
            *("img_h", "img_w", "patch_dim", "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads"),
            *("kv_channels", "layernorm_epsilon", "bias_activation_fusion"),
        )
    },
    "class_token_len": "class_token_length",
}
"""The same of a tower of Megatron-core's own."""

TOWER_ACTIVATIONS: Final = {"quick_gelu": ("approx-gelu", False), "openai_gelu": ("gelu", True)}

PROJECTORS: Final = {"mcore_mlp": "mlp2x_gelu", "mcore_affine": "linear"}
"""Megatron's own modules, which compute the same."""

LORA_SIZE: Final = 32
"""Rank and alpha of NeMo 2's adapters where its configuration names none."""

_OTHER: Final = "use a checkpoint of a GPT, or of NeVA, LLaVA or Video-NeVA, that NeMo 2 wrote"


def translate(document: dict[str, Any], members: Collection[str], at: str) -> dict[str, Any]:
    """Give the `model` section that NeMo 1 would have.

    Args:
        document: The parsed file.
        members: Names of all files of the checkpoint, for the tokenizer's.
        at: What to call the file in an error.

    Raises:
        ProductError: the file is of a model that is not known, or holds a value that NeMo 1 has no name for.
    """
    config = _section(document, "config", at)
    beside = {"tokenizer": _tokenizer(document.get("tokenizer"), members), "peft": _adapters(document)}
    if "language_transformer_config" not in config:
        return _language(config, at) | beside
    language = _section(config, "language_transformer_config", at)
    return _language(language, at) | beside | _multimodal(config, at)


def _adapters(document: Mapping[str, Any]) -> dict[str, Any]:
    """Say how adapters were trained; the classes of LoRA have the same defaults."""
    trained = document.get("model_transform")
    if not isinstance(trained, dict):
        return {}
    return {"lora_tuning": {"adapter_dim": trained.get("dim", LORA_SIZE), "alpha": trained.get("alpha", LORA_SIZE)}}


def _language(config: Mapping[str, Any], at: str) -> dict[str, Any]:
    section = {new: config[key] for key, new in LANGUAGE_KEYS.items() if config.get(key) is not None}
    function, gated = _target(config.get("activation_func", "gelu")), bool(config.get("gated_linear_unit", False))
    if (function, gated) not in ACTIVATIONS:
        gate = "with" if gated else "without"
        raise config_error(f"{at}: activation_func", f"is {function[:60]!r} {gate} a gate, which is not known", _OTHER)
    section["activation"], section["openai_gelu"] = ACTIVATIONS[function, gated]
    normalization = str(config.get("normalization", "LayerNorm"))
    if normalization not in NORMALIZATIONS:
        raise config_error(f"{at}: normalization", f"is {normalization[:60]!r}, which is not known", _OTHER)
    section["normalization"] = NORMALIZATIONS[normalization]
    # Only the configurations of Llama 3.1 and its successors have this key.
    section["scale_positional_embedding"] = config.get("scale_factor") is not None
    return section


def _multimodal(config: Mapping[str, Any], at: str) -> dict[str, Any]:
    vision = _section(config, "vision_transformer_config", at)
    projection = _section(config, "vision_projection_config", at)
    kind = str(projection.get("projector_type", "mlp2x_gelu"))
    named = vision.get("pretrained_model_name_or_path")
    tower: dict[str, Any] = {
        "from_pretrained": named or _target(vision),
        "from_hf": named is not None,
        "patch_dim": None,
        "hidden_size": vision.get("hidden_size"),
        "vision_select_layer": config.get("vision_feature_layer", -2),
        "vision_select_feature": "patch" if config.get("drop_vision_class_token", True) else "cls_patch",
        "megatron": _megatron_tower(vision, f"{at}: vision_transformer_config") if named is None else None,
    }
    return {
        "mm_cfg": {
            "llm": {"freeze": bool(config.get("freeze_language_model", False)), "model_type": "v1"},
            "vision_encoder": tower,
            "mm_mlp_adapter_type": PROJECTORS.get(kind, kind),
        },
        # NeMo 2 keeps no template with the model; its recipes train with LLaVA's.
        "data": {"conv_template": "v1"},
    }


def _megatron_tower(vision: Mapping[str, Any], at: str) -> dict[str, Any]:
    """Translate the sizes of Megatron-core's `CLIPViTModel` into those of NeMo 1's CLIP."""
    kind = vision.get("vision_model_type", "clip")
    if "img_h" not in vision or kind != "clip":
        raise config_error(
            at,
            f"{_target(vision)[:60]} of type {str(kind)[:60]!r} is neither a Hugging Face tower nor Megatron's CLIP",
            "use a checkpoint with a Hugging Face tower",
        )
    section = {new: vision[key] for key, new in TOWER_KEYS.items() if vision.get(key) is not None}
    function = _target(vision.get("activation_func", "gelu"))
    section["activation"], section["openai_gelu"] = TOWER_ACTIVATIONS.get(function, (function, False))
    if vision.get("gated_linear_unit", False):
        section["activation"] += " with a gate"
    if not vision.get("add_class_token", True):
        section["class_token_length"] = 0
    normalization = str(vision.get("normalization", "LayerNorm"))
    plain = not vision.get("layernorm_zero_centered_gamma", False)
    section["normalization"] = NORMALIZATIONS.get(normalization, normalization) + ("" if plain else "1p")
    return section | {"preprocess_layernorm": True}


def _tokenizer(described: object, members: Collection[str]) -> dict[str, Any]:
    """Name the tokenizer's files in the checkpoint.

    `tokenizer.json` comes first: a SentencePiece model beside it lacks the tokens that were added to it.
    """
    files = sorted(name for name in members if name.startswith(TOKENIZER_FOLDER))
    model = next((name for name in files if name.endswith(".model")), None)
    if model is not None and f"{TOKENIZER_FOLDER}tokenizer.json" not in files:
        return {"library": "sentencepiece", "model": f"nemo:{model}"}
    return {"library": "huggingface" if files else _target(described), "model": None}


def _section(document: Mapping[str, Any], key: str, at: str) -> dict[str, Any]:
    section = document.get(key)
    if not isinstance(section, dict):
        raise config_error(f"{at}: {key}", "is missing or holds no keys", _OTHER)
    return section


def _target(value: object) -> str:
    """Give the last part of a target's name; a plain text stands for itself."""
    if isinstance(value, dict):
        value = value.get("_target_")
    return str(value).rpartition(".")[2]
