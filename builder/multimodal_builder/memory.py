"""What a model takes of a GPU's memory, and over how many GPUs its language model can be split."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

from multimodal_api.base import Model
from multimodal_api.engine import Dtype
from multimodal_api.errors import Failure
from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from multimodal_api.engine import Limits
    from multimodal_builder.mappings.language_model import LanguageModel
    from multimodal_builder.tower_config import TowerConfig

BYTES: Final = {Dtype.BFLOAT16: 2, Dtype.FLOAT16: 2, Dtype.FLOAT32: 4}
"""Size of one value."""
CONTEXT: Final = 2**30
"""CUDA's context (0.4 to 0.6 GB per process), cuBLAS' and NCCL's buffers."""
SLACK: Final = 0.05
"""Part of everything else that the allocator cannot use."""
MOST_GPUS: Final = 64
_VOCABULARY_STEP: Final = 64
"""vLLM pads a vocabulary to a multiple of this before it splits it."""


class Memory(Model):
    """Bytes that the fullest GPU needs, the one that also encodes media; with no GPU, of the process's memory."""

    weights: int
    """Of the language model, or of this GPU's part of it."""
    cache: int
    """Keys and values of all requests at their longest."""
    media_encoder: int
    """Weights of tower and projector."""
    activations: int
    """Of one prompt at its longest, and of one batch of media."""
    reserved: int
    """For the device itself, and lost by the allocator."""
    total: int


def estimate(
    model: LanguageModel,
    tower: TowerConfig | None,
    encoder_parameters: int,
    *,
    limits: Limits,
    num_gpus: int,
    dtype: Dtype,
) -> Memory:
    """Estimate memory.

    With b bytes per value and t GPUs, after TensorRT-LLM's guide to memory and vLLM's layers:

    * weights: b · (matrices / t + vectors); where t exceeds the key/value heads, each GPU holds one, copied.
    * cache: b · 2 · layers · key/value heads of the GPU · head size · maxBatchSize · (maxInputLen + maxOutputLen).
    * media encoder: b · its parameters, not split.
    * activations: of a prompt's layer (twice the residual, normed input and output, queries, keys, values, and three
      widths of the feed-forward block), or of a batch of media in the tower (the same, and the hidden states of all its
      layers, of which one is selected), whichever is larger; and the logits of all requests in float32.
    * reserved: `CONTEXT` and `SLACK`.

    Args:
        model: The language model.
        tower: Sizes of the vision tower; None for a speech encoder, which computes in float32 and whose activations are
            left out.
        encoder_parameters: Values in tower and projector.
        limits: Sizes that the engine is built for.
        num_gpus: How many share the language model; 0 is none.
        dtype: Of weights, cache and activations.
    """
    size, parts = BYTES[dtype], max(1, num_gpus)
    groups = max(1, model.groups // parts)
    positions = limits.max_batch_size * (limits.max_input_len + limits.max_output_len)
    attention = (model.heads // parts + 2 * groups) * model.head_size
    prompt = size * limits.max_input_len * (4 * model.hidden + attention + 3 * model.ffn // parts)
    media = 0 if tower is None else size * _tower_values(tower, limits.vision_max_batch_size)
    used = {
        "weights": size * _held(model, parts),
        "cache": size * 2 * model.layers * groups * model.head_size * positions,
        "media_encoder": (BYTES[Dtype.FLOAT32] if tower is None else size) * encoder_parameters,
        "activations": max(prompt, media) + 4 * limits.max_batch_size * model.rows,
    }
    needed = sum(used.values())
    reserved = (CONTEXT if num_gpus else 0) + int(SLACK * needed)
    return Memory(**used, reserved=reserved, total=needed + reserved)


def _tower_values(tower: TowerConfig, pictures: int) -> int:
    """Count the values that a tower holds of one batch at most."""
    tokens = pictures * (tower.class_tokens + tower.patches)
    return tokens * ((tower.num_hidden_layers + 1 + 4 + 3) * tower.hidden_size + 2 * tower.intermediate_size)


def _held(model: LanguageModel, parts: int) -> int:
    """Count the values that one GPU holds of the language model."""
    matrices = sum(prod(shape) for shape in model.parameters.values() if len(shape) > 1)
    vectors = sum(prod(shape) for shape in model.parameters.values() if len(shape) == 1)
    keys_and_values = 2 * model.layers * model.groups * model.head_size * model.hidden
    copied = keys_and_values * max(0, parts - model.groups) // model.groups  # of all GPUs together
    return (matrices + copied) // parts + vectors


def tensor_parallel_sizes(model: LanguageModel) -> tuple[int, ...]:
    """List the numbers of GPUs over which a language model can be split evenly."""
    return tuple(size for size in range(1, MOST_GPUS + 1) if not any(_uneven(model, size)))


def check_tensor_parallel(model: LanguageModel, num_gpus: int) -> Iterator[Failure]:
    """Refuse a number of GPUs over which the model cannot be split."""
    if num_gpus > 1 and (reasons := list(_uneven(model, num_gpus))):
        sizes = ", ".join(map(str, tensor_parallel_sizes(model)))
        yield Failure(
            reason=Reason.INVALID,
            at="spec.numGpus",
            problem=f"is {num_gpus}, but it does not share out {' and '.join(reasons)}",
            remedy=f"set it to one of {sizes}",
        )


def _uneven(model: LanguageModel, size: int) -> Iterable[str]:
    """Name what cannot be split; the conditions of vLLM's and TensorRT-LLM's parallel layers."""
    if model.heads % size:
        yield f"{model.heads} attention heads"
    if model.groups % size and size % model.groups:  # fewer heads than GPUs are copied
        yield f"{model.groups} key/value heads"
    if model.ffn % size:
        yield f"{model.ffn} rows of the feed-forward block"
    if -(-model.rows // _VOCABULARY_STEP) * _VOCABULARY_STEP % size:
        yield f"{model.rows} rows of the vocabulary"
