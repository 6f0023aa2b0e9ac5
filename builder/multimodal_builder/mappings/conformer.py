"""NeMo's `ConformerEncoder` → transformers' `ParakeetEncoder`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from multimodal_builder.mappings.base import Ignore, Rename, Rule, Shape, per_layer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multimodal_builder.checkpoints.speech_config import ConformerSection

LAYER: Final = "layers.{n}"
EDGE: Final = 3
"""Kernel of the subsampling's convolutions, in both directions."""


class _Affine(NamedTuple):
    """A layer with a weight and perhaps a bias, under both names."""

    theirs: str
    ours: str
    shape: Shape
    bias: bool = True


def rules(before: str, config: ConformerSection) -> tuple[Rule, ...]:
    """Rename every parameter.

    Args:
        before: What stands in front of all names in the checkpoint.
        config: The sizes.
    """
    return (
        *(Rename(before + theirs, ours) for theirs, ours, _ in _tensors(config)),
        Ignore(f"{before}{LAYER}.conv.batch_norm.num_batches_tracked", why="counts training steps"),
    )


def parameters(config: ConformerSection) -> dict[str, Shape]:
    """Names and shapes of transformers' model, without its counter of training steps."""
    return dict(per_layer({ours: shape for _, ours, shape in _tensors(config)}, config.n_layers))


def description(config: ConformerSection) -> dict[str, Any]:
    """Give `config.json`."""
    return {
        "architectures": ["ParakeetEncoder"],
        "model_type": "parakeet_encoder",
        "num_mel_bins": config.feat_in,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_model * config.ff_expansion_factor,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "hidden_act": "silu",
        "attention_bias": config.use_bias,
        "convolution_bias": config.use_bias,
        "conv_kernel_size": config.conv_kernel_size,
        "subsampling_factor": config.subsampling_factor,
        "subsampling_conv_channels": config.channels,
        "subsampling_conv_kernel_size": EDGE,
        "subsampling_conv_stride": 2,
        "scale_input": config.xscaling,
    }


def _tensors(config: ConformerSection) -> Iterator[tuple[str, str, Shape]]:
    """List NeMo's name, transformers' name and the shape of every tensor."""
    for theirs, ours, shape, bias in (*_subsampling(config), *_layer(config)):
        yield f"{theirs}.weight", f"{ours}.weight", shape
        if bias:
            yield f"{theirs}.bias", f"{ours}.bias", shape[:1]
    width = (config.d_model,)
    for running in ("running_mean", "running_var"):
        yield f"{LAYER}.conv.batch_norm.{running}", f"{LAYER}.conv.norm.{running}", width
    # Shared biases (untie_biases false) are stored under every layer's name too.
    for side in "uv":
        heads = (config.n_heads, config.d_model // config.n_heads)
        yield f"{LAYER}.self_attn.pos_bias_{side}", f"{LAYER}.self_attn.bias_{side}", heads


def _subsampling(config: ConformerSection) -> Iterator[_Affine]:
    """Give the striding convolutions: a plain one, then pairs of a depthwise and a pointwise one, with ReLU between."""
    channels = config.channels
    yield _Affine("pre_encode.conv.0", "subsampling.layers.0", (channels, 1, EDGE, EDGE))
    for halving in range(1, config.halvings):
        depth, point = 3 * halving - 1, 3 * halving
        yield _Affine(f"pre_encode.conv.{depth}", f"subsampling.layers.{depth}", (channels, 1, EDGE, EDGE))
        yield _Affine(f"pre_encode.conv.{point}", f"subsampling.layers.{point}", (channels, channels, 1, 1))
    flat = channels * (config.feat_in // config.subsampling_factor)
    yield _Affine("pre_encode.out", "subsampling.linear", (config.d_model, flat))


def _layer(config: ConformerSection) -> Iterator[_Affine]:
    """Give one layer: half a feed-forward, attention, convolution, half a feed-forward, each behind its norm."""
    width, inner = config.d_model, config.d_model * config.ff_expansion_factor
    bias = config.use_bias
    for name in ("norm_feed_forward1", "norm_self_att", "norm_conv", "norm_feed_forward2", "norm_out"):
        yield _Affine(f"{LAYER}.{name}", f"{LAYER}.{name}", (width,))
    for name in (f"{LAYER}.feed_forward1", f"{LAYER}.feed_forward2"):
        yield _Affine(f"{name}.linear1", f"{name}.linear1", (inner, width), bias)
        yield _Affine(f"{name}.linear2", f"{name}.linear2", (width, inner), bias)
    attention = f"{LAYER}.self_attn"
    for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
        yield _Affine(f"{attention}.linear_{theirs}", f"{attention}.{ours}_proj", (width, width), bias)
    yield _Affine(f"{attention}.linear_pos", f"{attention}.relative_k_proj", (width, width), bias=False)
    for name, shape in (
        (f"{LAYER}.conv.pointwise_conv1", (2 * width, width, 1)),
        (f"{LAYER}.conv.depthwise_conv", (width, 1, config.conv_kernel_size)),
        (f"{LAYER}.conv.pointwise_conv2", (width, width, 1)),
    ):
        yield _Affine(name, name, shape, bias)
    yield _Affine(f"{LAYER}.conv.batch_norm", f"{LAYER}.conv.norm", (width,))
