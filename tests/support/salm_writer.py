"""SALM checkpoints from transformers' models: the archive of NeMo 1, and what its script splits it into.

Shares nothing with the product's reader. Names are those that NeMo 2.2 gives its perception module.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from torch import Tensor, nn
from transformers import ParakeetEncoderConfig
from transformers.audio_utils import mel_filter_bank
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder

from support.archives import CKPT, CLASSIC, CONFIG, Archive
from support.states import State, saved, state_of

BANDS: Final = 80
HIDDEN: Final = 96
"""Of the tiny NeVA's language model, before which the tiny speech encoder stands."""

# transformers' words and NeMo's.
NAMES: Final = (
    ("subsampling.layers.", "pre_encode.conv."),
    ("subsampling.linear.", "pre_encode.out."),
    ("self_attn.relative_k_proj.", "self_attn.linear_pos."),
    ("self_attn.q_proj.", "self_attn.linear_q."),
    ("self_attn.k_proj.", "self_attn.linear_k."),
    ("self_attn.v_proj.", "self_attn.linear_v."),
    ("self_attn.o_proj.", "self_attn.linear_out."),
    ("self_attn.bias_", "self_attn.pos_bias_"),
    ("conv.norm.", "conv.batch_norm."),
)


@dataclass(frozen=True)
class Perception:
    """A random speech encoder, adapter and projector, in evaluation mode."""

    encoder: Any
    adapter: Any
    projector: Any

    @classmethod
    def random(cls, *, seed: int = 5, **changes: Any) -> Perception:
        torch.manual_seed(seed)
        sizes = {"num_attention_heads": 4, "conv_kernel_size": 9, "attention_bias": True, "scale_input": True} | changes
        sizes["convolution_bias"] = sizes["attention_bias"]
        encoder = conformer(num_mel_bins=BANDS, hidden_size=32, num_hidden_layers=3, **sizes)
        adapter = conformer(num_mel_bins=32, hidden_size=40, num_hidden_layers=2, **sizes)
        return cls(encoder, adapter, nn.Linear(40, HIDDEN).requires_grad_(requires_grad=False))

    def state(self, prefix: str = "perception.") -> State:
        """All tensors under NeMo's names, the front end's window and bands among them."""
        bank = mel_filter_bank(257, BANDS, 0.0, 8_000.0, 16_000, norm="slaney", mel_scale="slaney")
        state = {
            "preprocessor.featurizer.window": torch.hann_window(400, periodic=False),
            "preprocessor.featurizer.fb": torch.from_numpy(bank.T).float()[None].contiguous(),
            "proj.weight": self.projector.weight,
            "proj.bias": self.projector.bias,
        }
        for part, model in (("encoder", self.encoder), ("modality_adapter", self.adapter)):
            state |= {f"{part}.{nemo_name(name)}": tensor for name, tensor in model.state_dict().items()}
        return {prefix + name: tensor.detach().clone() for name, tensor in state.items()}

    def config(self) -> dict[str, Any]:
        """NeMo's `perception` section."""
        return {
            "target": "nemo.collections.multimodal.speech_llm.modules.perception_modules.AudioPerceptionModule",
            "output_dim": HIDDEN,
            "preprocessor": {
                "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
                "sample_rate": 16_000,
                "normalize": "per_feature",
                "window_size": 0.025,
                "window_stride": 0.01,
                "window": "hann",
                "features": BANDS,
                "n_fft": 512,
                "frame_splicing": 1,
                "dither": 1e-5,
                "pad_to": 0,
            },
            "encoder": section(self.encoder.config),
            "spec_augment": {"_target_": "nemo.collections.asr.modules.SpectrogramAugmentation", "freq_masks": 0},
            "modality_adapter": section(self.adapter.config),
        }


def conformer(**sizes: Any) -> Any:
    """A random encoder, whose batch norms have seen something."""
    config = ParakeetEncoderConfig(intermediate_size=4 * sizes["hidden_size"], subsampling_conv_channels=8, **sizes)
    model = ParakeetEncoder(config).eval().requires_grad_(requires_grad=False)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn_like(tensor)
            spread = 0.4 if "self_attn" in name else 0.2  # attention that looks somewhere
            tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else tensor + noise * spread)
    return model


def section(config: Any) -> dict[str, Any]:
    """NeMo's section of one ConformerEncoder."""
    return {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": config.num_mel_bins,
        "feat_out": -1,
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "use_bias": config.attention_bias,
        "subsampling": "dw_striding",
        "subsampling_factor": config.subsampling_factor,
        "subsampling_conv_channels": config.subsampling_conv_channels,
        "causal_downsampling": False,
        "reduction": None,
        "reduction_position": None,
        "reduction_factor": 1,
        "ff_expansion_factor": 4,
        "self_attention_model": "rel_pos",
        "n_heads": config.num_attention_heads,
        "att_context_size": [-1, -1],
        "att_context_style": "regular",
        "xscaling": config.scale_input,
        "untie_biases": True,
        "pos_emb_max_len": 5000,
        "conv_kernel_size": config.conv_kernel_size,
        "conv_norm_type": "batch_norm",
        "conv_context_size": None,
        "dropout": 0.1,
    }


def nemo_name(name: str) -> str:
    """Translate a name of `ParakeetEncoder`."""
    for theirs, ours in NAMES:
        name = name.replace(theirs, ours)
    return name


def whole(
    perception: Perception,
    adapters: State | None = None,
    peft: dict[str, Any] | None = None,
    language: State | None = None,
) -> Archive:
    """The archive of a whole model: NeMo writes values without tensors into it too.

    Args:
        perception: The speech encoder.
        adapters: LoRA's tensors.
        peft: NeMo's `peft` section.
        language: Of a language model as large as the tiny NeVA's; by default that one.
    """
    archive = Archive.read(CLASSIC)
    language = language or {name: tensor for name, tensor in state_of(archive).items() if "mm_projector" not in name}
    nothing = {
        "model.decoder.layers.0.self_attention.linear_qkv._extra_state": io.BytesIO(),
        "model.decoder.layers.0.mlp.linear_fc1._extra_state": None,
    }
    archive.members[CKPT] = saved(perception.state() | language | (adapters or {}) | nothing)
    config = archive.config()
    del config["mm_cfg"]
    config |= {
        "target": "nemo.collections.multimodal.speech_llm.models.modular_models.ModularAudioGPTModel",
        "perception": perception.config(),
        "peft": peft or {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": 32, "alpha": None}},
        "data": {
            "end_string": "[EOG]",
            "train_ds": {
                "sample_rate": 16_000,
                "prompt_template": "Q: {context}\nA: {answer}",
                "context_key": "context",
                "answer_key": "answer",
                "end_string": "[EOG]",
                "add_bos": False,
                "add_eos": True,
                "add_sep": False,
            },
        },
    }
    archive.members[CONFIG] = yaml.safe_dump(config).encode()
    return archive


def split(archive: Archive, folder: Path) -> tuple[Path, Path, Path]:
    """Do what NeMo's script does: a perception folder, the language model, and the adapters."""
    state: dict[str, Tensor] = torch.load(io.BytesIO(archive.members[CKPT]), weights_only=False)
    perception = folder / "salm_perception"
    perception.mkdir()
    speech = {name.removeprefix("perception."): value for name, value in state.items() if name.startswith("perception")}
    torch.save(speech, perception / CKPT)
    (perception / CONFIG).write_text(yaml.safe_dump(archive.config()["perception"]))
    lora = {name: value for name, value in state.items() if "adapter_layer.lora" in name}
    language = {name: value for name, value in state.items() if name.startswith("model.") and name not in lora}
    paths = []
    for name, part in (("llm", language), ("lora", lora)):
        members = archive.members | {CKPT: saved(part)}
        path = folder / f"salm_{name}.nemo"
        path.write_bytes(Archive(members).to_bytes())
        paths.append(path)
    return perception, *paths
