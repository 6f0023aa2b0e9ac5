"""Writes NeVA checkpoints as NeMo 1 `.nemo` archives, from a Hugging Face model's tensors.

Shares nothing with the product's reader, so that a test which reads what this writes compares two independent accounts
of the format. Each fact of the layout stands beside the line that needs it; all were seen in archives that NeMo 2.1 to
2.4 wrote, or read in NeMo's sources (`examples/multimodal/multimodal_llm/neva` and Megatron-core).
"""

import dataclasses
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from torch import Tensor
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint import planner as dcp_planner
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult

PROJECTOR: Final = "model.embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector."
TOWER: Final = "model.embedding.word_embeddings.vision_encoder."
LAYERS: Final = "model.decoder.layers."

# What Megatron-core writes at the root of `model_weights/`, word for word.
DISTRIBUTED_MARK: Final = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}

State = dict[str, Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class LlamaShape:
    """The numbers of a Llama that decide where its rows go.

    `padded_vocab` is the row count of NeMo's embedding and output matrices: the tokenizer's size, rounded up to
    `make_vocab_size_divisible_by`. The rows past the tokenizer are random in real checkpoints, and are here.
    """

    layers: int
    heads: int
    groups: int
    padded_vocab: int


def fuse_qkv(query: Tensor, key: Tensor, value: Tensor, *, groups: int) -> Tensor:
    """Interleave the three projections as Megatron does: per query group its query heads, then its key, then its value.

    Args:
        query: [heads * head_size, hidden]; key and value: [groups * head_size, hidden].
        key: see `query`.
        value: see `query`.
        groups: key/value heads.

    Returns:
        [(heads + 2 * groups) * head_size, hidden].
    """
    hidden = query.shape[1]
    per_group = [part.reshape(groups, -1, hidden) for part in (query, key, value)]
    return torch.cat(per_group, dim=1).reshape(-1, hidden)


def pad_rows(matrix: Tensor, rows: int, *, seed: int) -> Tensor:
    """Add untrained rows at the end, as an embedding has that was initialised at the padded size (std 0.014)."""
    noise = torch.randn(rows - matrix.shape[0], matrix.shape[1], generator=torch.Generator().manual_seed(seed))
    return torch.cat([matrix, noise.to(matrix.dtype) * 0.014])


def layer_state(llama: Mapping[str, Tensor], layer: int, shape: LlamaShape) -> State:
    """One decoder layer under Megatron-core's names (Transformer Engine's spelling of the norms), without prefix.

    Args:
        llama: A `LlamaForCausalLM` state with Hugging Face names (`model.layers.0.…`).
        layer: Which layer.
        shape: The model's numbers.
    """

    def take(name: str) -> Tensor:
        return llama[f"model.layers.{layer}.{name}.weight"]

    attention, feed = "self_attn", "mlp"
    return {
        "self_attention.linear_qkv.layer_norm_weight": take("input_layernorm"),
        "self_attention.linear_qkv.weight": fuse_qkv(
            take(f"{attention}.q_proj"), take(f"{attention}.k_proj"), take(f"{attention}.v_proj"), groups=shape.groups
        ),
        "self_attention.linear_proj.weight": take(f"{attention}.o_proj"),
        "mlp.linear_fc1.layer_norm_weight": take("post_attention_layernorm"),
        # fast-swiglu: the rows that go through the activation come first.
        "mlp.linear_fc1.weight": torch.cat([take(f"{feed}.gate_proj"), take(f"{feed}.up_proj")]),
        "mlp.linear_fc2.weight": take(f"{feed}.down_proj"),
    }


def outer_state(llama: Mapping[str, Tensor], projector: Mapping[str, Tensor], shape: LlamaShape) -> State:
    """Everything that is not a decoder layer: embedding, head, final norm, and the mlp2x_gelu projector.

    Args:
        llama: A `LlamaForCausalLM` state with Hugging Face names.
        projector: `linear_1` and `linear_2`, weights and biases; in NeMo modules 0 and 2 of a Sequential, GELU is 1.
        shape: The model's numbers.
    """
    state = {
        "model.embedding.word_embeddings.weight": pad_rows(
            llama["model.embed_tokens.weight"], shape.padded_vocab, seed=1
        ),
        "model.output_layer.weight": pad_rows(llama["lm_head.weight"], shape.padded_vocab, seed=2),
        "model.decoder.final_layernorm.weight": llama["model.norm.weight"],
    }
    for name, index in (("linear_1", 0), ("linear_2", 2)):
        for kind in ("weight", "bias"):
            state[f"{PROJECTOR}{index}.{kind}"] = projector[f"{name}.{kind}"]
    return state


def classic_state(llama: Mapping[str, Tensor], projector: Mapping[str, Tensor], shape: LlamaShape) -> State:
    """The flat dictionary of `model_weights.ckpt`: layers carry their number. A frozen tower is not part of it."""
    state = outer_state(llama, projector, shape)
    for layer in range(shape.layers):
        state |= {f"{LAYERS}{layer}.{name}": tensor for name, tensor in layer_state(llama, layer, shape).items()}
    return state


def distributed_state(
    llama: Mapping[str, Tensor], projector: Mapping[str, Tensor], tower: Mapping[str, Tensor], shape: LlamaShape
) -> State:
    """The tensors of `model_weights/`: layers are stacked, [layers, …] under one key without a number.

    Args:
        llama: A `LlamaForCausalLM` state with Hugging Face names.
        projector: As for `outer_state`.
        tower: The trained (not frozen) CLIP tower, Hugging Face names with `vision_model.`; NeMo holds it as bfloat16.
        shape: The model's numbers.
    """
    layers = [layer_state(llama, layer, shape) for layer in range(shape.layers)]
    stacked = {f"{LAYERS}{name}": torch.stack([layer[name] for layer in layers]) for name in layers[0]}
    stored = {f"{TOWER}{name}": tensor.to(torch.bfloat16) for name, tensor in tower.items()}
    return outer_state(llama, projector, shape) | stacked | stored


class MegatronChunks(DefaultSavePlanner):
    """Cuts tensors as Megatron-core's sharded tensors do: one chunk per layer, and fc1's two halves apart.

    A reader must assemble chunks by their offsets: their number and order are no part of the format.
    """

    def __init__(self) -> None:
        # Megatron-core saves flat dictionaries and leaves torch's flattening (and its planner_data) off.
        super().__init__(flatten_state_dict=False)

    def create_local_plan(self) -> dcp_planner.SavePlan:
        """Plan one write per chunk."""
        self._planned: dict[tuple[str, torch.Size | None], dcp_metadata.ChunkStorageMetadata] = {
            (name, chunk.offsets): chunk for name, tensor in self.state_dict.items() for chunk in _chunks(name, tensor)
        }
        self.plan = dcp_planner.SavePlan([self._write(name, chunk) for (name, _), chunk in self._planned.items()])
        return self.plan

    def lookup_object(self, index: dcp_metadata.MetadataIndex) -> Tensor:
        """The rows that a planned write stands for."""
        chunk = self._planned[index.fqn, index.offset]
        part: Tensor = self.state_dict[index.fqn]
        for axis, (start, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            part = part.narrow(axis, start, length)
        return part.clone()  # a view would be stored with all of its tensor

    def _write(self, name: str, chunk: dcp_metadata.ChunkStorageMetadata) -> dcp_planner.WriteItem:
        tensor: Tensor = self.state_dict[name]
        return dcp_planner.WriteItem(
            index=dcp_metadata.MetadataIndex(name, chunk.offsets),
            type=dcp_planner.WriteItemType.SHARD,
            tensor_data=dcp_planner.TensorWriteData(
                chunk=chunk,
                properties=dcp_metadata.TensorProperties.create_from_tensor(tensor),
                size=tensor.size(),
            ),
        )


def _chunks(name: str, tensor: Tensor) -> list[dcp_metadata.ChunkStorageMetadata]:
    """Where one tensor is cut."""
    if not name.startswith(LAYERS):
        return [dcp_metadata.ChunkStorageMetadata(torch.Size([0] * tensor.dim()), tensor.size())]
    halves = 2 if name.endswith("linear_fc1.weight") else 1
    size = torch.Size([1, tensor.shape[1] // halves, *tensor.shape[2:]])
    rest = [0] * (tensor.dim() - 2)
    return [
        dcp_metadata.ChunkStorageMetadata(torch.Size([layer, half * size[1], *rest]), size)
        for layer in range(tensor.shape[0])
        for half in range(halves)
    ]


class _RepeatableWriter(FileSystemWriter):
    """torch's own writer, without what differs from run to run: the path, the random id, which thread ended first."""

    def storage_meta(self) -> dcp_metadata.StorageMeta:
        return dcp_metadata.StorageMeta(checkpoint_id=Path("model_weights"), save_id="1")

    def finish(self, metadata: dcp_metadata.Metadata, results: list[list[WriteResult]]) -> None:
        ordered = sorted(
            (written for listed in results for written in listed),
            key=lambda written: (written.index.fqn, tuple(written.index.offset or ())),
        )
        super().finish(metadata, [ordered])


def write_distributed(folder: Path, state: State) -> None:
    """Write the directory `model_weights` in the `torch_dist` form.

    That is `.metadata`, `__0_0.distcp`, `__0_1.distcp`, `common.pt` and `metadata.json`.
    """
    folder.mkdir()
    # Two write threads give the two data files that NeMo's single-process archives have.
    writer = _RepeatableWriter(folder, thread_count=2)
    save(state, storage_writer=writer, planner=MegatronChunks(), no_dist=True)
    torch.save({}, folder / "common.pt")  # values that are not sharded: NeVA has none
    (folder / "metadata.json").write_text(json.dumps(DISTRIBUTED_MARK))


def write_ranks(root: Path, ranks: Sequence[Mapping[str, Any]]) -> None:
    """Write what tensor-parallel ranks store: `mp_rank_00/model_weights.ckpt`, and so on."""
    for rank, state in enumerate(ranks):
        folder = root / f"mp_rank_{rank:02d}"
        folder.mkdir()
        torch.save(state, folder / "model_weights.ckpt")


def write_archive(
    path: Path, *, config: Mapping[str, Any], tokenizer: bytes | None, state: Mapping[str, Any], distributed: bool
) -> None:
    """Write a whole `.nemo`: an uncompressed tar of configuration, tokenizer and weights.

    Args:
        path: The archive to write; replaced if it exists.
        config: The `model` part of NeMo's configuration; `tokenizer.model` is set to the file in the archive.
        tokenizer: A SentencePiece model file; None leaves the tokenizer that the configuration names outside.
        state: From `distributed_state` or `classic_state`.
        distributed: Which of the two `state` is.
    """

    def weights(root: Path) -> None:
        if distributed:
            write_distributed(root / "model_weights", dict(state))
        else:
            torch.save(dict(state), root / "model_weights.ckpt")

    write_members(path, config=config, tokenizer=tokenizer, weights=weights)


def write_members(
    path: Path, *, config: Mapping[str, Any], tokenizer: bytes | None, weights: Callable[[Path], None]
) -> None:
    """Write a `.nemo` whose weights `weights` puts into the archive's root; the rest as for `write_archive`."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        settings = dict(config)
        if tokenizer is not None:
            # NeMo prefixes artifacts with a random 32-digit id; a digest of the content serves and repeats.
            artifact = f"{hashlib.sha256(tokenizer).hexdigest()[:32]}_tokenizer.model"
            settings["tokenizer"] = {**config["tokenizer"], "model": f"nemo:{artifact}"}
            (root / artifact).write_bytes(tokenizer)
        (root / "model_config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        weights(root)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:") as archive:
            # NeMo adds the folder under this name: members are `.`, `./model_config.yaml`, and so on.
            archive.add(root, arcname=".", filter=_anonymous)
        path.write_bytes(packed.getvalue())


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who wrote the member and when, so that the same model gives the same archive."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mtime = 0
    member.mode = 0o755 if member.isdir() else 0o644
    return member
