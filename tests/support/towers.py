"""Tiny vision towers of transformers with random weights, and the folders in which people have them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

import torch
import yaml
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from support.archives import CKPT, CONFIG, Archive
from support.states import saved

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

WIDTH: Final = 64
PATCH: Final = 8
_VISION: Final = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": PATCH,
}
_TEXT: Final = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
}


def make_clip(image_size: int) -> CLIPVisionModel:
    """A tower; an odd number of patches per edge where `image_size` is an odd multiple of `PATCH`."""
    return _shaken(CLIPVisionModel(CLIPVisionConfig(**_VISION, image_size=image_size)))


def make_siglip(image_size: int) -> SiglipVisionModel:
    """A tower with its pooling head, as every SigLIP has it."""
    return _shaken(SiglipVisionModel(SiglipVisionConfig(**_VISION, image_size=image_size)))


def names_of(tower: nn.Module) -> dict[str, Tensor]:
    """The tower's tensors under the names that the repositories and NeMo use, with `vision_model.`; in bfloat16."""
    return {f"vision_model.{name}": tensor.bfloat16().contiguous() for name, tensor in tower.state_dict().items()}


def whole(tower: CLIPVisionModel | SiglipVisionModel) -> CLIPModel | SiglipModel:
    """The model that a tower is half of."""
    model: CLIPModel | SiglipModel
    if isinstance(tower, CLIPVisionModel):
        model = CLIPModel(CLIPConfig(text_config=CLIPTextConfig(**_TEXT), vision_config=tower.config))
    else:
        model = SiglipModel(SiglipConfig(text_config=SiglipTextConfig(**_TEXT), vision_config=tower.config))
    state = {name.removeprefix("vision_model."): tensor for name, tensor in names_of(tower).items()}
    model.vision_model.load_state_dict(state)
    return model


def write_folder(folder: Path, tower: CLIPVisionModel | SiglipVisionModel, form: str) -> None:
    """Write a tower's repository.

    Args:
        folder: Replaced where it is there.
        tower: The weights.
        form: `tower` (as transformers 5 writes it), `whole` (tower and text), `shards`, `old` (the names with
            `vision_model.`, the position numbers that older versions stored) or `bin` (the same, pickled).
    """
    shutil.rmtree(folder, ignore_errors=True)
    if form in {"whole", "shards"}:
        whole(tower).save_pretrained(folder, max_shard_size="100KB" if form == "shards" else "1GB")
    else:
        tower.save_pretrained(folder)
    _processor(tower).save_pretrained(folder)
    if form in {"old", "bin"}:
        positions = torch.arange(tower.config.image_size // PATCH)[None]
        state = names_of(tower) | {"vision_model.embeddings.position_ids": positions}
        (folder / "model.safetensors").unlink()
        if form == "old":
            save_file(state, folder / "model.safetensors")
        else:
            torch.save(state, folder / "pytorch_model.bin")


def _processor(tower: CLIPVisionModel | SiglipVisionModel) -> Any:
    edge = tower.config.image_size
    square = {"height": edge, "width": edge}
    if isinstance(tower, CLIPVisionModel):
        return CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=square)
    return SiglipImageProcessorPil(size=square)


def _shaken(tower: Any) -> Any:
    """Make every parameter count: fresh norms are 1 and 0, fresh biases 0. All values are bfloat16's."""
    generator = torch.Generator().manual_seed(5)
    for parameter in tower.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.data = (parameter.data + noise).bfloat16().float()
    return tower.float().eval()


def nemo_clip_state(tower: CLIPVisionModel, *, legacy: bool) -> dict[str, Tensor]:
    """The tensors of NeMo 1's `VitBackbone`, behind `vision_encoder.`, from a tower of transformers.

    As NeMo's `convert_external_clip_to_nemo.py` writes them; the bias of the patches, which that script leaves 0 and
    training does not, is made up, and taken off the positions.

    Args:
        tower: The weights.
        legacy: `megatron_legacy`: queries, keys and values lie one behind the other, and not head by head.
    """
    theirs = tower.state_dict()
    heads = tower.config.num_attention_heads
    bias = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    positions = theirs["embeddings.position_embedding.weight"].clone()
    positions[1:] -= bias
    state = {
        "cls_token": theirs["embeddings.class_embedding"].reshape(1, 1, -1),
        # Pixels row by row, the three colours of one behind the other.
        "linear_encoder.weight": theirs["embeddings.patch_embedding.weight"].permute(0, 2, 3, 1).flatten(1),
        "linear_encoder.bias": bias,
        "position_embeddings": positions,
    }
    modules = {"preprocess_layernorm": "pre_layrnorm", "transformer.final_layernorm": "post_layernorm"}
    for layer in range(tower.config.num_hidden_layers):
        block, encoder = f"transformer.layers.{layer}", f"encoder.layers.{layer}"
        modules |= {
            f"{block}.input_layernorm": f"{encoder}.layer_norm1",
            f"{block}.self_attention.dense": f"{encoder}.self_attn.out_proj",
            f"{block}.post_attention_layernorm": f"{encoder}.layer_norm2",
            f"{block}.mlp.dense_h_to_4h": f"{encoder}.mlp.fc1",
            f"{block}.mlp.dense_4h_to_h": f"{encoder}.mlp.fc2",
        }
        for kind in ("weight", "bias"):
            three = torch.stack([theirs[f"{encoder}.self_attn.{name}_proj.{kind}"] for name in "qkv"])
            by_head = three.unflatten(1, (heads, -1)).transpose(0, 1)
            fused = three.flatten(0, 1) if legacy else by_head.flatten(0, 2)
            state[f"{block}.self_attention.query_key_value.{kind}"] = fused
    for name, source in modules.items():
        state |= {f"{name}.{kind}": theirs[f"{source}.{kind}"] for kind in ("weight", "bias")}
    return {f"backbone.{name}": tensor.contiguous() for name, tensor in state.items()}


def clip_section(tower: CLIPVisionModel) -> dict[str, object]:
    """NeMo's configuration of a tower of its own."""
    config = tower.config
    return {
        "img_h": config.image_size,
        "img_w": config.image_size,
        "patch_dim": PATCH,
        "class_token_length": 1,
        "preprocess_layernorm": True,
        "num_layers": config.num_hidden_layers,
        "hidden_size": WIDTH,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "kv_channels": None,
        "normalization": "layernorm",
        "layernorm_epsilon": config.layer_norm_eps,
        "activation": "approx-gelu",
    }


def nemo_clip_archive(tower: CLIPVisionModel, *, legacy: bool, **changes: object) -> Archive:
    """The `.nemo` of a `MegatronCLIPModel` around a tower; `changes` are made in its section `vision`."""
    vision = clip_section(tower) | {"megatron_legacy": legacy, "output_dim": "${model.output_dim}"}
    state = {f"model.vision_encoder.{name}": value for name, value in nemo_clip_state(tower, legacy=legacy).items()}
    state |= {
        "model.vision_encoder.head.weight": torch.zeros(8, WIDTH),
        "model.text_encoder.language_model.embedding.position_embeddings": torch.zeros(8, 16),
        "model.logit_scale": torch.zeros(()),
    }
    document = {"output_dim": 8, "vision": vision | changes, "text": {}}
    return Archive({CONFIG: yaml.safe_dump(document).encode(), CKPT: saved(state)})


def megatron_clip_state(tower: CLIPVisionModel, *, last_norm: bool) -> dict[str, Tensor]:
    """The tensors of Megatron-core's `CLIPViTModel`, from a tower of transformers.

    As NeMo's `convert_clip_hf_to_nemo.py` writes them: queries, key and value of each head in turn.

    Args:
        tower: The weights.
        last_norm: Whether the norm behind the last layer, which NeVA's towers do not have, is written.
    """
    theirs = tower.state_dict()
    heads = tower.config.num_attention_heads
    state = {
        "class_token": theirs["embeddings.class_embedding"].reshape(1, 1, -1),
        "conv1.weight": theirs["embeddings.patch_embedding.weight"],
        "position_embeddings.weight": theirs["embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        state[f"ln_pre.{kind}"] = theirs[f"pre_layrnorm.{kind}"]
        if last_norm:
            state[f"decoder.final_layernorm.{kind}"] = theirs[f"post_layernorm.{kind}"]
        for layer in range(tower.config.num_hidden_layers):
            block, encoder = f"decoder.layers.{layer}", f"encoder.layers.{layer}"
            query, key, value = (
                theirs[f"{encoder}.self_attn.{name}_proj.{kind}"].unflatten(0, (heads, -1)) for name in "qkv"
            )
            state |= {
                f"{block}.self_attention.linear_qkv.{kind}": torch.cat([query, key, value], 1).flatten(0, 1),
                f"{block}.self_attention.linear_qkv.layer_norm_{kind}": theirs[f"{encoder}.layer_norm1.{kind}"],
                f"{block}.self_attention.linear_proj.{kind}": theirs[f"{encoder}.self_attn.out_proj.{kind}"],
                f"{block}.mlp.linear_fc1.{kind}": theirs[f"{encoder}.mlp.fc1.{kind}"],
                f"{block}.mlp.linear_fc1.layer_norm_{kind}": theirs[f"{encoder}.layer_norm2.{kind}"],
                f"{block}.mlp.linear_fc2.{kind}": theirs[f"{encoder}.mlp.fc2.{kind}"],
            }
    return {name: tensor.contiguous() for name, tensor in state.items()}


def megatron_clip_config(tower: CLIPVisionModel) -> dict[str, object]:
    """`vision_transformer_config` of NeMo 2's `CLIPViTL_14_336_Config`, at a tower's sizes."""
    config = tower.config
    return {
        "_target_": "nemo.collections.vlm.vision.clip_vit.CLIPViTL_14_336_Config",
        "vision_model_type": "clip",
        "add_class_token": True,
        "class_token_len": 1,
        "patch_dim": PATCH,
        "img_h": config.image_size,
        "img_w": config.image_size,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_size": WIDTH,
        "ffn_hidden_size": config.intermediate_size,
        "kv_channels": WIDTH // config.num_attention_heads,
        "gated_linear_unit": False,
        "activation_func": {"_target_": "nemo.collections.llm.fn.activation.quick_gelu", "_call_": False},
        "layernorm_zero_centered_gamma": False,
        "layernorm_epsilon": config.layer_norm_eps,
        "bias_activation_fusion": False,
        "normalization": "LayerNorm",
    }
