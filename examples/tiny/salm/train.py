"""Trains the tiny SALM and writes it as NeMo does: language model, adapters and perception in one `model_weights.ckpt`.

    python examples/tiny/salm/train.py --out OUT [--seed N] [--effort X]

OUT then holds `salm.nemo` and `heldout/` (sounds, questions and answers never trained on). The LoRA adapters stay apart
from the weights they add to, and their alpha is not their rank. All parts learn together, base weights included.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

# Read when torch is loaded: threads that wait for one another sleep. Spinning is slow on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import sentencepiece
from tiny import configs, languages, nemo_writer, perception, prompts, sounds, states, trainer
from tiny.answering import Answerer, Subject, World
from tiny.languages import Sizes
from tiny.learning import Progress
from tiny.perception import Perception, reduced
from tiny.prompts import Prompter

SIZES: Final = Sizes(vocab=400, groups=2)
RANK: Final = 8
ALPHA: Final = 16

WORLD: Final = World(sounds.sounds, sounds.ask, sounds.record, sounds.row_labels, sounds.deep_labels)


def conformer_config(features: int) -> dict[str, Any]:
    """NeMo's keys of one FastConformer."""
    return {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": features,
        "feat_out": -1,
        "n_layers": perception.LAYERS,
        "d_model": perception.WIDTH,
        "subsampling": "dw_striding",
        "subsampling_factor": perception.REDUCTION,
        "subsampling_conv_channels": perception.CHANNELS,
        "causal_downsampling": False,
        "reduction": None,
        "reduction_position": None,
        "reduction_factor": 1,
        "ff_expansion_factor": perception.EXPANSION,
        "self_attention_model": "rel_pos",
        "n_heads": perception.HEADS,
        "att_context_size": [-1, -1],
        "att_context_style": "regular",
        "xscaling": True,
        "untie_biases": True,
        "pos_emb_max_len": 5000,
        "conv_kernel_size": perception.KERNEL,
        "conv_norm_type": "batch_norm",
        "conv_context_size": None,
        "dropout": 0.0,
        "dropout_pre_encoder": 0.0,
        "dropout_emb": 0.0,
        "dropout_att": 0.0,
    }


def perception_config() -> dict[str, Any]:
    """`perception`: the parts copied from a recogniser, and the modality adapter."""
    return {
        "target": "nemo.collections.multimodal.speech_llm.modules.perception_modules.AudioPerceptionModule",
        "use_multi_layer_feat": False,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": sounds.RATE,
            "normalize": "per_feature",
            "window_size": sounds.WINDOW / sounds.RATE,
            "window_stride": sounds.HOP / sounds.RATE,
            "window": "hann",
            "features": sounds.MELS,
            "n_fft": sounds.FFT,
            "log": True,
            "frame_splicing": 1,
            "dither": 1e-5,
            "pad_to": 0,
            "pad_value": 0.0,
        },
        "encoder": conformer_config(sounds.MELS),
        "modality_adapter": conformer_config(perception.WIDTH),
        "spec_augment": {
            "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
            "freq_masks": 2,
            "time_masks": 10,
            "freq_width": 27,
            "time_width": 0.05,
        },
        "output_dim": SIZES.hidden,
    }


def model_config() -> dict[str, Any]:
    """NeMo's modular_audio_gpt configuration, at the tiny sizes."""
    source = {
        "manifest_filepath": None,
        "sample_rate": sounds.RATE,
        "prompt_template": "Q: {context}\nA: {answer}",
        "context_key": "context",
        "answer_key": "answer",
        "end_string": None,
        "add_bos": False,
        "add_eos": True,
        "add_sep": False,
    }
    return {
        "precision": 32,
        "micro_batch_size": 4,
        "global_batch_size": 32,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "restore_from_path": None,
        "pretrained_audio_model": "stt_en_fastconformer_transducer_large",
        "freeze_llm": True,
        "freeze_audio_encoder": False,
        "freeze_modality_adapter": False,
        "load_audio_encoder": True,
        **configs.language_keys(SIZES),
        "peft": {
            "peft_scheme": "lora",
            "restore_from_path": None,
            "lora_tuning": {
                "variant": "nemo",
                "target_modules": ["attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"],
                "adapter_dim": RANK,
                "alpha": ALPHA,
                "adapter_dropout": 0.0,
                "column_init_method": "xavier",
                "row_init_method": "zero",
                "layer_selection": None,
                "weight_tying": False,
                "position_embedding_strategy": None,
            },
        },
        "perception": perception_config(),
        "tokenizer": configs.SENTENCEPIECE,
        "data": {"train_ds": source, "validation_ds": source},
        "target": "nemo.collections.multimodal.speech_llm.models.modular_models.ModularAudioGPTModel",
        "nemo_version": configs.CLASSIC_VERSION,
    }


def save(out: Path, llm: LlamaForCausalLM, hearing: Perception, tokenizer: bytes) -> None:
    """Write the archive."""
    decoder = states.Decoder(languages.base_state(llm), SIZES.shape)
    heard = states.perception_state(
        languages.stored(hearing.encoder.state_dict()),
        languages.stored(hearing.adapter.state_dict()),
        languages.stored(hearing.projection.state_dict()),
        {"window": sounds.window(), "fb": sounds.mel_bank()[None]},
    )
    adapters = states.lora_state(languages.stored(languages.adapter_weights(llm)), SIZES.shape)
    nemo_writer.write_archive(
        out / "salm.nemo",
        config=model_config(),
        tokenizer=tokenizer,
        state=decoder.classic() | adapters | heard | states.extra_states(SIZES.shape),
        distributed=False,
    )


def make(seed: int, device: torch.device, _: Progress) -> trainer.Family:
    """The family, untrained."""
    tokenizer = prompts.train_sentencepiece(
        [*["Q: ", "A: "] * 20, *trainer.corpus(WORLD, seed)], SIZES.vocab, (), prefix=True
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    llm = languages.make_llama(SIZES, pieces.eos_id())
    languages.adapt(llm, RANK, ALPHA)
    hearing = Perception(SIZES.hidden)
    model = Answerer(hearing, llm)

    def see(media: Sequence[sounds.Samples]) -> list[Tensor]:
        return [sounds.mels(samples).to(device) for samples in media]

    def layout(seen: Tensor) -> prompts.Parts:
        return (reduced(reduced(len(seen))),)

    subject = Subject(model, Prompter(pieces, prompts.SALM, pieces.eos_id()), see, layout)
    return trainer.Family(
        WORLD,
        subject,
        lambda out: save(out, llm, hearing, tokenizer),
        amount=8000,
        media_steps=1000,
        steps=2600,
        listed=6,
    )


if __name__ == "__main__":
    sys.exit(trainer.main(__doc__, make))
