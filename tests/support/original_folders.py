"""Tiny models in the folders that LLaVA's and VILA's own code writes, and their scores by transformers' parts."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from support.towers import WIDTH, make_clip, make_siglip, write_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import CLIPVisionModel, SiglipVisionModel

HIDDEN: Final = 48
PIECES: Final = 320
_TEXT: Final = (
    "a red blue square and how many circles are there?",
    "what is in this image, left of the user and the assistant?",
)


@dataclass(frozen=True)
class Whole:
    """All parts, in float32."""

    llm: LlamaForCausalLM
    tower: CLIPVisionModel | SiglipVisionModel
    projector: nn.Sequential | nn.Linear
    layer: int
    feature: str

    def scores(self, before: list[int], pixels: Tensor, after: list[int], *, joined: bool, by_line: bool) -> Tensor:
        """Logits of a prompt; `joined`: 2 by 2 tokens are one, column by column unless `by_line`."""
        with torch.inference_mode():
            tokens = self.tower(pixels, output_hidden_states=True).hidden_states[self.layer][0]
            tokens = tokens[1:] if self.feature == "patch" else tokens
            rows = self.projector(join(tokens, by_line=by_line) if joined else tokens)
            embed = self.llm.get_input_embeddings()
            parts = [embed(torch.tensor(before)), rows, embed(torch.tensor(after))]
            logits: Tensor = self.llm(inputs_embeds=torch.cat(parts)[None]).logits[0]
            return logits


def join(tokens: Tensor, *, by_line: bool) -> Tensor:
    """Square by square, in plain loops; a missing row or column is zeros."""
    edge = round(len(tokens) ** 0.5)
    empty = torch.zeros_like(tokens[0])

    def at(row: int, column: int) -> Tensor:
        return tokens[row * edge + column] if row < edge and column < edge else empty

    half = range(0, edge, 2)
    places = [(row, column) for row in half for column in half] if by_line else [(r, c) for c in half for r in half]
    return torch.stack([torch.cat([at(r, c), at(r, c + 1), at(r + 1, c), at(r + 1, c + 1)]) for r, c in places])


def make_whole(
    kind: str, *, siglip: bool, feature: str, edge: int, rows: int, stretched: float = 1.0, groups: int = 2
) -> Whole:
    """Make a model of random weights; `kind` is `mm_projector_type`, `stretched` the factor of its positions."""
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=rows, hidden_size=HIDDEN, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=groups, max_position_embeddings=512,
        rope_parameters={"rope_type": "linear", "factor": stretched, "rope_theta": 5e5},
    )  # fmt: skip
    llm = LlamaForCausalLM(config).float().eval()
    projector: nn.Sequential | nn.Linear
    match kind:
        case "linear":
            projector = nn.Linear(WIDTH, HIDDEN)
        case "mlp_downsample":
            wide = 4 * WIDTH
            projector = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))
        case _:
            projector = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))
    for parameter in (*llm.parameters(), *projector.parameters()):
        parameter.data += torch.randn_like(parameter) * 0.1
    tower = make_siglip(edge) if siglip else make_clip(edge)
    return Whole(llm, tower, projector.eval(), -2, feature)


def projector_state(whole: Whole, kind: str, before: str) -> dict[str, Tensor]:
    """The projector's tensors; the step that joins tokens is number 0 of its sequence, and has none."""
    moved = 1 if kind == "mlp_downsample" else 0
    named = {}
    for name, tensor in whole.projector.state_dict().items():
        number, _, rest = name.partition(".")
        named[before + (f"{int(number) + moved}.{rest}" if rest else name)] = tensor.contiguous()
    return named


def write_vila(folder: Path, whole: Whole, kind: str, **changes: Any) -> Path:
    """Write VILA's folder without a tokenizer."""
    whole.llm.save_pretrained(folder / "llm")
    write_folder(folder / "vision_tower", whole.tower, "tower")
    (folder / "mm_projector").mkdir()
    _dump(folder / "mm_projector" / "config.json", {"model_type": "v2l_projector", "mm_projector_type": kind})
    save_file(projector_state(whole, kind, "layers."), folder / "mm_projector" / "model.safetensors")
    root = {
        "architectures": ["LlavaLlamaModel"], "model_type": "llava_llama", "image_aspect_ratio": "resize",
        "mm_vision_select_layer": whole.layer, "mm_vision_select_feature": whole.feature, "mm_use_im_start_end": False,
        "mm_hidden_size": WIDTH, "hidden_size": HIDDEN, "s2": False, "vision_resolution": -1,
        "llm_cfg": {"model_type": "llama"},
    }  # fmt: skip
    _dump(folder / "config.json", root | changes)
    return folder


def write_original(
    folder: Path, whole: Whole, kind: str, *, tower_inside: bool, projector_beside: bool, pickled: bool, **changes: Any
) -> Path:
    """Write LLaVA's folder without a tokenizer, and beside it the tower's, `tower-beside`."""
    whole.llm.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    write_folder(folder.parent / "tower-beside", whole.tower, "tower")
    state = dict(whole.llm.state_dict())
    projector = projector_state(whole, kind, "model.mm_projector.")
    if projector_beside:
        torch.save(projector, folder / "mm_projector.bin")
    else:
        state |= projector
    if tower_inside:
        before = "model.vision_tower.vision_tower.vision_model."
        state |= {before + name: tensor for name, tensor in whole.tower.state_dict().items()}
        damaged = {name: torch.zeros_like(tensor) for name, tensor in whole.tower.state_dict().items()}
        save_file(damaged, folder.parent / "tower-beside" / "model.safetensors")
    state = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    written = json.loads((folder / "config.json").read_text())
    ours = {
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "mm_vision_tower": "tower-beside",
        "mm_projector_type": kind, "mm_vision_select_layer": whole.layer, "mm_vision_select_feature": whole.feature,
        "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "image_aspect_ratio": "pad",
        "use_mm_proj": True, "tune_mm_mlp_adapter": False, "mm_hidden_size": WIDTH, "mm_resampler_type": None,
        "max_length": 4096, "pad_token_id": 0, "tokenizer_padding_side": "right", "tokenizer_model_max_length": 2048,
    }  # fmt: skip
    _dump(folder / "config.json", written | ours | changes)
    return folder


def write_old_rope(path: Path) -> None:
    """Write positions in `config.json` as transformers 4 did, whose versions both projects use."""
    document = json.loads(path.read_text())
    rope = document.pop("rope_parameters")
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "linear", "factor": rope["factor"]}}
    _dump(path, document | old)


def sentencepiece_model() -> bytes:
    """A model file of Llama's kind, with `<unk>`, `<s>` and `</s>` at 0, 1 and 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT * 50),
        model_writer=model, model_type="bpe", vocab_size=PIECES, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def write_sentencepiece(folder: Path, **settings: Any) -> bytes:
    """Write a tokenizer as `tokenizer.model` alone; gives the model."""
    model = sentencepiece_model()
    (folder / "tokenizer.model").write_bytes(model)
    _dump(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "legacy": False} | settings)
    return model


def _dump(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document))
