"""Writes a classic state dictionary in NeMo's other forms, with torch alone and nothing of the product.

Each form is written from what Megatron does when it saves: its parallel layers say which rows or columns a rank holds.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import yaml

from support.archives import CKPT, Archive
from support.states import State, saved

LAYER: Final = re.compile(r"(.*\.decoder\.layers\.)(\d+)\.(.*)")

FAN_OUT: Final = (
    *("word_embeddings.weight", "output_layer.weight", "linear_qkv.weight", "linear_qkv.bias"),
    *("linear_fc1.weight", "linear_fc1.bias"),
    # NeMo's adapters: the inner layer of those that fan out is cut by rank, the outer one always by its outputs.
    *("lora_kqv_adapter.linear_in.weight", "lora_hto4h_adapter.linear_in.weight", "linear_out.weight"),
    # NeMo's own CLIP.
    *(f"{layer}.{kind}" for layer in ("query_key_value", "dense_h_to_4h") for kind in ("weight", "bias")),
    *(f".{part}_adapter.linear_in.weight" for part in ("q", "k", "v", "gate", "up")),
)
"""Ends of names of tensors whose rows the ranks share."""
FAN_IN: Final = (
    *("linear_proj.weight", "linear_fc2.weight", "self_attention.dense.weight", "dense_4h_to_h.weight"),
    *("lora_dense_attention_adapter.linear_in.weight", "lora_4htoh_adapter.linear_in.weight"),
)
"""Ends of names of tensors whose columns they share."""
GATED: Final = ("linear_fc1.weight", "linear_fc1.bias", "lora_hto4h_adapter.linear_out.weight")
"""Where there is a gate, each rank holds its part of the gate, then its part of the other half."""


def slice_of(
    name: str, tensor: torch.Tensor, rank: int, ranks: int, *, gated: bool = True, thirds: bool = False
) -> torch.Tensor:
    """What one tensor-parallel rank holds of a tensor; of the speech encoder all.

    Args:
        name: Decides which axis is shared.
        tensor: Whole.
        rank: From 0.
        ranks: How many there are.
        gated: Whether the first layer of each feed-forward block has a gate.
        thirds: Whether the attention's queries, keys and values lie apart.
    """
    if name.startswith("perception."):
        return tensor
    if thirds and ".query_key_value." in name:
        return torch.cat([part.chunk(ranks)[rank] for part in tensor.chunk(3)])
    if gated and name.endswith(GATED):
        gate, up = tensor.chunk(2)
        return torch.cat([gate.chunk(ranks)[rank], up.chunk(ranks)[rank]])
    if name.endswith(FAN_OUT):
        return tensor.chunk(ranks)[rank].clone()
    if name.endswith(FAN_IN):
        return tensor.chunk(ranks, dim=1)[rank].clone()
    return tensor


HEADS_COPY: Final = {False: "model.output_layer.weight", True: "model.word_embeddings.weight"}
"""The name of a tied embedding's copy in the last stage, and its name before Megatron-core."""


def stage_of(state: State, stage: int, stages: int, config: Mapping[str, Any], *, legacy: bool = False) -> State:
    """What one pipeline stage holds, its layers numbered from 0.

    A tied embedding is there a second time where the head is computed. What is no part of the language model, as the
    speech encoder, is a part of every stage's model.
    """
    last = stage == stages - 1
    held: State = {}
    for name, tensor in state.items():
        if match := LAYER.fullmatch(name):
            size = config["num_layers"] // stages
            number = int(match[2]) - stage * size
            if 0 <= number < size:
                held[f"{match[1]}{number}.{match[3]}"] = tensor
            continue
        behind = "output_layer" in name or "final_layernorm" in name
        if not name.startswith("model.") or (last if behind else stage == 0):
            held[name] = tensor
    if last and stages > 1 and config.get("share_embeddings_and_output_weights"):
        held[HEADS_COPY[legacy]] = state["model.embedding.word_embeddings.weight"]
    return held


def as_ranks(
    archive: Archive, state: State, *, tensor: int, pipeline: int, legacy: bool = False, thirds: bool = False
) -> Archive:
    """Replace the weights by one file per rank.

    Args:
        archive: Its configuration says whether there is a gate, how many layers there are, and what is tied.
        state: Under Megatron-core's names.
        tensor: Ranks that share tensors.
        pipeline: Stages that share layers.
        legacy: Whether the files get the names of NeMo before Megatron-core.
        thirds: Whether the attention's queries, keys and values lie apart.
    """
    archive.members.pop(CKPT, None)
    config = archive.config()
    gated = config.get("activation", "gelu").endswith("glu")
    for stage in range(pipeline):
        held = stage_of(state, stage, pipeline, config, legacy=legacy)
        for rank in range(tensor):
            part = {
                name: slice_of(name, value, rank, tensor, gated=gated, thirds=thirds) for name, value in held.items()
            }
            if legacy:
                part = legacy_state(part, rotary=config["position_embedding_type"] == "rope")
            folder = f"tp_rank_{rank:02d}_pp_rank_{stage:03d}" if pipeline > 1 else f"mp_rank_{rank:02d}"
            archive.members[f"{folder}/model_weights.ckpt"] = saved(part)
    archive.set_config("tensor_model_parallel_size", tensor)
    return archive.set_config("pipeline_model_parallel_size", pipeline)


LEGACY: Final = (
    ("self_attention.linear_qkv.layer_norm_", "input_layernorm."),
    ("self_attention.linear_qkv.", "self_attention.query_key_value."),
    ("self_attention.linear_proj.", "self_attention.dense."),
    ("mlp.linear_fc1.layer_norm_", "post_attention_layernorm."),
    ("mlp.linear_fc1.", "mlp.dense_h_to_4h."),
    ("mlp.linear_fc2.", "mlp.dense_4h_to_h."),
)


def legacy_state(state: State, *, apart: bool = False, first_projector: bool = False, rotary: bool = True) -> State:
    """The names of NeMo before Megatron-core.

    Args:
        state: Megatron-core's names.
        apart: The gated layer's two halves as two tensors (`swiglu`), or as one (`fast-swiglu`).
        first_projector: The name that the projector had in NeMo 1.22.
        rotary: Whether positions are; their frequencies are a buffer of every stage.
    """
    renamed: State = {"model.language_model.rotary_pos_emb.inv_freq": torch.ones(12)} if rotary else {}
    for name, tensor in state.items():
        if not name.startswith("model.") or name == HEADS_COPY[True]:
            renamed[name] = tensor
            continue
        short = name.removeprefix("model.").replace("decoder.", "encoder.")
        for new, old in LEGACY:
            if short.startswith("encoder.layers.") and new in short:
                short = short.replace(new, old)
                break
        if first_projector:
            short = short.replace("mm_projector_adapter.mm_projector.", "mm_linear_adapter.linear.")
        full = f"model.language_model.{short}"
        if apart and "dense_h_to_4h." in full:
            renamed[full], renamed[full.replace("dense_h_to_4h.", "dense_h_to_4h_2.")] = (
                half.clone() for half in tensor.chunk(2)
            )
        else:
            renamed[full] = tensor
    return renamed


EXPERT: Final = re.compile(r"(.*\.mlp\.experts\.)local_experts\.(\d+)\.(.*)")


def stacked(state: State) -> State:
    """Layers as the first axis of one tensor, and experts as its second, as all distributed forms have them."""
    parts: dict[str, dict[tuple[int, ...], torch.Tensor]] = {}
    rest: State = {}
    for name, tensor in state.items():
        if (layer := LAYER.fullmatch(name)) is None:
            rest[name] = tensor
        elif (expert := EXPERT.fullmatch(layer[3])) is None:
            parts.setdefault(f"{layer[1]}{layer[3]}", {})[int(layer[2]),] = tensor
        else:
            joined = f"{layer[1]}{expert[1]}experts.{expert[3]}"
            parts.setdefault(joined, {})[int(layer[2]), int(expert[2])] = tensor
    return rest | {name: stack(found) for name, found in parts.items()}


def stack(parts: Mapping[tuple[int, ...], torch.Tensor]) -> torch.Tensor:
    """One tensor of tensors by their index on its first axes."""
    counts = [last + 1 for last in max(parts)]
    return torch.stack([parts[index] for index in sorted(parts)]).unflatten(0, counts)


def whole_chunks(name: str, tensor: torch.Tensor) -> tuple[int, ...]:
    """How Megatron cuts for zarr: layer by layer, a gated layer's halves apart, other tensors whole."""
    if ".decoder.layers." not in name:
        return tuple(tensor.shape)
    rows = tensor.shape[1] // (2 if name.endswith(GATED) else 1)
    return (1, rows, *tensor.shape[2:])


def as_zarr(
    archive: Archive,
    state: State,
    chunks: Callable[[str, torch.Tensor], tuple[int, ...]] = whole_chunks,
    *,
    weights: str = "model_weights",
) -> Archive:
    """Replace the weights by zarr arrays.

    Args:
        archive: Any.
        state: Stacked.
        chunks: Shape of the chunks of a tensor; those at the end may reach beyond it.
        weights: The folder.
    """
    archive.members = {
        name: content
        for name, content in archive.members.items()
        if name != CKPT and not name.startswith("model_weights/")
    }
    mark = {"sharded_backend": "zarr", "sharded_backend_version": 1, "common_backend": "torch"}
    archive.members[f"{weights}/metadata.json"] = json.dumps(mark).encode()
    archive.members[f"{weights}/common.pt"] = saved({})
    for name, tensor in state.items():
        archive.members |= {f"{weights}/{name}/{file}": data for file, data in zarr_array(tensor, chunks(name, tensor))}
    archive.members[f"{weights}/model.decoder.layers.mlp.linear_fc1._extra_state/shard_0_2.pt"] = saved(None)
    return archive


DTYPES: Final = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "bfloat16"}


def zarr_array(tensor: torch.Tensor, chunk: tuple[int, ...]) -> list[tuple[str, bytes]]:
    """The files of one array."""
    described = {
        "chunks": list(chunk),
        "compressor": None,
        "dtype": DTYPES[tensor.dtype],
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(tensor.shape),
        "zarr_format": 2,
    }
    counts = [-(-length // size) for length, size in zip(tensor.shape, chunk, strict=True)]
    padded = torch.zeros([count * size for count, size in zip(counts, chunk, strict=True)], dtype=tensor.dtype)
    padded[tuple(slice(length) for length in tensor.shape)] = tensor
    files = [(".zarray", json.dumps(described).encode())]
    for place in torch.cartesian_prod(*map(torch.arange, counts)).reshape(-1, len(counts)).tolist():
        part = padded[tuple(slice(at * size, (at + 1) * size) for at, size in zip(place, chunk, strict=True))]
        files.append((".".join(map(str, place)), part.contiguous().view(torch.uint8).numpy().tobytes()))
    return files


def unpack(archive: Archive, folder: Path) -> Path:
    """Write the members as files."""
    for name, content in archive.members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


TOWER: Final = "model.embedding.word_embeddings.vision_encoder."
PROJECTOR: Final = "model.embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector."

LANGUAGE: Final = {
    "_target_": "nemo.collections.llm.gpt.model.llama.Llama2Config7B",
    "num_layers": 2,
    "hidden_size": 96,
    "ffn_hidden_size": 256,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": None,
    "seq_length": 4096,
    "layernorm_epsilon": 1e-5,
    "normalization": "RMSNorm",
    "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
    "rotary_base": 10000,
    "share_embeddings_and_output_weights": False,
    "num_moe_experts": None,
    "params_dtype": {"_target_": "torch.bfloat16", "_call_": False},
}
"""The tiny NeVA's language model, in the words of NeMo 2."""

VISUAL: Final = {
    "_target_": "nemo.collections.vlm.neva.model.llava.LlavaConfig",
    "num_layers": 1,
    "hidden_size": 96,
    "drop_vision_class_token": True,
    "vision_feature_layer": -2,
    "vision_transformer_config": {
        "_target_": "nemo.collections.vlm.vision.base.HFCLIPVisionConfig",
        "hidden_size": 64,
        "pretrained_model_name_or_path": "clip",
    },
    "vision_projection_config": {
        "_target_": "nemo.collections.vlm.neva.model.base.MultimodalProjectorConfig",
        "projector_type": "mlp2x_gelu",
        "input_size": 64,
        "hidden_size": 96,
    },
    "language_transformer_config": LANGUAGE,
}


def nemo2_name(name: str, *, own_projector: bool = False) -> str:
    """The name that NeMo 2 gives a tensor of a model that sees."""
    if name.startswith(PROJECTOR):
        place = name.removeprefix(PROJECTOR)
        if own_projector:
            place = place.replace("0.", "encoder.linear_fc1.").replace("2.", "encoder.linear_fc2.")
        return f"module.vision_projection.{place}"
    if name.startswith(TOWER):
        return f"module.vision_model.{name.removeprefix(TOWER)}"
    return f"module.language_model.{name.removeprefix('model.')}"


def as_nemo2(
    archive: Archive, state: State, config: Mapping[str, object], transform: Mapping[str, object] | None = None
) -> Archive:
    """A NeMo 2 checkpoint with zarr weights: names as they are in `state`, stacked.

    Args:
        archive: Has the tokenizer.
        state: Stacked.
        config: Of the model.
        transform: Of its adapters.
    """
    [tokenizer] = [content for name, content in archive.members.items() if name.endswith("tokenizer.model")]
    made = as_zarr(Archive({}), state, weights="weights")
    described = {"_target_": "nemo.collections.vlm.LlavaModel", "config": config, "tokenizer": {"_target_": "a.B"}}
    described |= {} if transform is None else {"model_transform": transform}
    made.members["context/model.yaml"] = yaml.safe_dump(described).encode()
    made.members["context/io.json"] = b"{}"
    made.members["context/nemo_tokenizer/tokenizer.model"] = tokenizer
    return made


def gzipped(data: bytes) -> bytes:
    """As very old archives are, without the time of day."""
    return gzip.compress(data, 1, mtime=0)


def pickle_of(ckpt: bytes) -> bytes:
    """The pickle in what torch saved."""
    with zipfile.ZipFile(io.BytesIO(ckpt)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


def with_pickle(ckpt: bytes, pickled: bytes) -> bytes:
    """The same file with another pickle, and correct sizes and checksums."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(ckpt)) as before, zipfile.ZipFile(packed, "w") as after:
        for name in before.namelist():
            after.writestr(name, pickled if name.endswith("/data.pkl") else before.read(name))
    return packed.getvalue()
