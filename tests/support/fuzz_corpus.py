"""A very small checkpoint in every form, and each of its parts that has a reader of its own."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
import yaml
from safetensors.torch import save as save_safetensors
from tiny import nemo_writer

from multimodal_api.engine import Dtype
from multimodal_api.errors import ProductError
from multimodal_api.families import Family, LlmType
from multimodal_builder.canonical import write_canonical
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.checkpoints.ckpt import CkptSource
from multimodal_builder.checkpoints.config import LanguageConfig
from multimodal_builder.checkpoints.huggingface import SafetensorsSource
from multimodal_builder.checkpoints.nemo import open_checkpoint
from multimodal_builder.checkpoints.peft import open_peft
from multimodal_builder.checkpoints.tensors import CARRIERS, row_reader
from multimodal_builder.checkpoints.window import ByteFile
from multimodal_builder.inspection import inspect
from multimodal_builder.lora import Adapters, merge_adapters
from support import forms
from support.archives import CKPT, CLASSIC, CLIP, CONFIG, Archive
from support.states import State, saved

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from multimodal_builder.checkpoints.tensors import TensorSource

PLACE: Final = "model.decoder.layers."


@dataclass(frozen=True)
class Target:
    """What is damaged, and how it is read."""

    name: str
    whole: bytes
    others: Sequence[bytes]
    write: Callable[[Path, bytes], Path]
    read: Callable[[Path], None]


def small_state() -> State:
    """Two layers of width 8, as Megatron-core names them."""
    chance = torch.Generator().manual_seed(0)
    shapes = {
        "model.embedding.word_embeddings.weight": (16, 8),
        "model.output_layer.weight": (16, 8),
        "model.decoder.final_layernorm.weight": (8,),
    }
    for layer in range(2):
        shapes |= {
            f"{PLACE}{layer}.self_attention.linear_qkv.layer_norm_weight": (8,),
            f"{PLACE}{layer}.self_attention.linear_qkv.weight": (16, 8),
            f"{PLACE}{layer}.self_attention.linear_proj.weight": (8, 8),
            f"{PLACE}{layer}.mlp.linear_fc1.weight": (24, 8),
            f"{PLACE}{layer}.mlp.linear_fc2.weight": (8, 12),
        }
    return {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}


def small_archive() -> Archive:
    """The classic form."""
    config = {
        "num_layers": 2,
        "hidden_size": 8,
        "ffn_hidden_size": 12,
        "num_attention_heads": 2,
        "num_query_groups": 1,
        "encoder_seq_length": 16,
        "layernorm_epsilon": 1e-5,
        "activation": "fast-swiglu",
        "tokenizer": {"library": "sentencepiece", "model": "nemo:tokenizer.model"},
        "data": {"list": [1, 2.5, None, True, "text"]},
    }
    archive = Archive({CONFIG: yaml.safe_dump(config).encode(), "tokenizer.model": b"pieces"})
    views = {"turned": torch.randn(8, 16).t(), "repeated": torch.randn(4).expand(6, 4)}
    archive.members[CKPT] = saved(small_state() | views | adapters(FUSED) | {"x._extra_state": None})
    return archive


FUSED: Final = "self_attention.adapter_layer.lora_kqv_adapter"
SECOND: Final = "self_attention.linear_qkv.adapter"


def adapters(name: str) -> State:
    """LoRA of the attention's input, by NeMo 1's name or NeMo 2's."""
    chance = torch.Generator().manual_seed(1)
    return {
        f"{PLACE}{layer}.{name}.linear_{side}.weight": torch.randn(shape, generator=chance)
        for layer in range(2)
        for side, shape in (("in", (2, 8)), ("out", (16, 2)))
    }


def distributed_archive(scratch: Path) -> Archive:
    """torch's distributed form."""
    folder = scratch / "distributed"
    shutil.rmtree(folder, ignore_errors=True)
    nemo_writer.write_distributed(folder, forms.stacked(small_state()))
    archive = small_archive()
    del archive.members[CKPT]
    for path in sorted(folder.iterdir()):
        archive.members[f"model_weights/{path.name}"] = path.read_bytes()
    return archive


def nemo2_archive() -> Archive:
    """NeMo 2's, with zarr weights."""
    stacked = forms.stacked(small_state() | adapters(SECOND))
    named = {name.replace("model.", "module.", 1): tensor for name, tensor in stacked.items()}
    config = forms.LANGUAGE | {"hidden_size": 8, "num_attention_heads": 2, "num_query_groups": 1}
    return forms.as_nemo2(Archive({"tokenizer.model": b"pieces"}), named, config, {"dim": 2, "alpha": 4})


def peft_folder() -> Archive:
    """An adapter of peft's."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {r"layers.\d+.self_attn.q_proj": 8}}
    state = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": torch.ones(shape)
        for layer in range(2)
        for side, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    return Archive(
        {
            "adapter_config.json": json.dumps(config).encode(),
            "adapter_model.safetensors": save_safetensors(state),
        }
    )


def read_source(source: TensorSource) -> None:
    for name, info in source.infos().items():
        source.read(name)
        if prod(info.shape) and (reader := row_reader(source, name) if info.shape else None):
            row = np.empty((1, *info.shape[1:]), CARRIERS[info.dtype])
            for number in {0, info.shape[0] - 1}:
                reader(row, number)


def read_checkpoint(path: Path) -> None:
    with open_checkpoint(path, LanguageConfig) as checkpoint:
        found = Adapters(checkpoint.at, checkpoint.tensors, checkpoint.config.lora)
        read_source(merge_adapters(checkpoint.tensors, [found], checkpoint.config))
        checkpoint.artifact("tokenizer.model", checkpoint.config.tokenizer.model)


def read_peft(path: Path) -> None:
    with ExitStack() as opened:
        read_source(open_peft(path, opened).tensors)


def _read_file(path: Path, source: Callable[..., TensorSource]) -> None:
    with ByteFile(os.open(path, os.O_RDONLY), path.name) as file:
        read_source(source(file.window(path.name)))


def convert_checkpoint(path: Path) -> None:
    """The whole way from an archive to a canonical model."""
    inspection, plan, opened = inspect(
        CheckpointPaths(visual=path), family=Family.NEVA, llm_type=LlmType.LLAMA, dtype=Dtype.FLOAT32, limits=None
    )
    with opened:
        for problem in inspection.problems:
            raise ProductError(problem.reason, at=problem.at, problem=problem.problem, remedy=problem.remedy)
        assert plan is not None
        out = path.parent / "out"
        shutil.rmtree(out, ignore_errors=True)
        write_canonical(plan, out, root=out, dtype=None, on_bytes=lambda _: None)


def _write_with_tower(folder: Path, data: bytes) -> Path:
    shutil.copytree(CLIP, folder / "clip", dirs_exist_ok=True)
    return _write_file(folder, data)


def _write_file(folder: Path, data: bytes) -> Path:
    path = folder / "input.nemo"
    path.write_bytes(data)
    return path


def _write_member(archive: Archive, member: str) -> Callable[[Path, bytes], Path]:
    """The whole checkpoint as a folder, one file of it damaged."""

    def write(folder: Path, data: bytes) -> Path:
        root = folder / "input"
        if not root.exists():
            forms.unpack(archive, root)
        (root / member).write_bytes(data)
        return root

    return write


@cache
def targets(scratch: Path) -> dict[str, Target]:
    """All of them."""
    state = small_state()
    classic, distributed, second = small_archive(), distributed_archive(scratch), nemo2_archive()
    zarr = forms.as_zarr(small_archive(), forms.stacked(state))
    ranks = forms.as_ranks(small_archive(), state, tensor=2, pipeline=2)
    header = save_safetensors(state)
    wholes = {
        "ckpt archive": classic.to_bytes(),
        "torch_dist archive": distributed.to_bytes(),
        "zarr archive": zarr.to_bytes(),
        "ranks archive": ranks.to_bytes(),
        "nemo 2 archive": second.to_bytes(),
        "gzip archive": forms.gzipped(classic.to_bytes()),
    }
    others = [*wholes.values(), header, distributed.members["model_weights/.metadata"]]
    found = {name: Target(name, whole, others, _write_file, read_checkpoint) for name, whole in wholes.items()}
    found["safetensors"] = Target(
        "safetensors", header, others, _write_file, lambda path: _read_file(path, SafetensorsSource)
    )
    found["ckpt"] = Target(
        "ckpt", classic.members[CKPT], others, _write_file, lambda path: _read_file(path, CkptSource)
    )
    norm = "model_weights/model.decoder.layers.mlp.linear_fc1.weight/.zarray"
    for name, archive, member in (
        ("model_config.yaml", classic, CONFIG),
        ("context/model.yaml", second, "context/model.yaml"),
        (".metadata", distributed, "model_weights/.metadata"),
        (".distcp", distributed, "model_weights/__0_0.distcp"),
        ("metadata.json", distributed, "model_weights/metadata.json"),
        (".zarray", zarr, norm),
        ("a rank", ranks, "tp_rank_01_pp_rank_000/model_weights.ckpt"),
    ):
        write = _write_member(archive, member)
        found[name] = Target(name, archive.members[member], others, write, read_checkpoint)
    peft = peft_folder()
    for member in peft.members:
        found[member] = Target(member, peft.members[member], others, _write_member(peft, member), read_peft)
    pickled = forms.pickle_of(classic.members[CKPT])
    found["data.pkl"] = Target(
        "data.pkl",
        pickled,
        others,
        lambda folder, data: _write_file(folder, forms.with_pickle(classic.members[CKPT], data)),
        lambda path: _read_file(path, CkptSource),
    )
    tiny = CLASSIC.read_bytes()
    found["conversion"] = Target("conversion", tiny, others, _write_with_tower, convert_checkpoint)
    return found


NAMES: Final = (
    *("ckpt archive", "torch_dist archive", "zarr archive", "ranks archive", "nemo 2 archive", "gzip archive"),
    *("safetensors", "ckpt", "data.pkl", "model_config.yaml", "context/model.yaml", ".metadata", ".distcp"),
    *("metadata.json", ".zarray", "a rank", "adapter_config.json", "adapter_model.safetensors", "conversion"),
)
SLOW: Final = "conversion"
"""Reads a whole model, and writes one."""
