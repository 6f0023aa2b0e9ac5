"""Trains the tiny NeVA on synthetic pictures and writes it as two NeMo archives.

    python examples/tiny/neva/train.py --out OUT [--seed N] [--minutes M]

OUT then holds `neva.nemo` (distributed weights, tower inside), `neva_ckpt.nemo` (classic weights, tower in `clip/`),
`clip/`, `heldout/` (pictures, questions and answers never trained on) and `hf/` (the same model for transformers).

Two steps, as NeVA is made: first the tower learns to see (here: what stands in each cell of the grid), is rounded to
bfloat16 and frozen; then projector and language model learn to answer about its features, which are computed once.
Training is counted in steps, not minutes, so that a busy machine gives the same model, later. A round of answering that
ends below the mark on fresh pictures is followed by another: some seeds need it.
"""

import argparse
import itertools
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Read when torch is loaded: threads that wait for one another sleep. Spinning is slow on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel, LlavaForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tiny import learning, nemo_writer, pictures
from tiny.learning import Progress, optimise
from tiny.neva import evaluate
from tiny.neva import model as tiny
from tiny.neva.config import model_config

THREADS: Final = 2
PICTURES: Final = 12_000
CHUNK: Final = 500  # pictures prepared at a time
TOWER_BATCH: Final = 64
TOWER_STEPS: Final = 800
TOWER_RATE: Final = 2e-3
ANSWER_BATCH: Final = 24
ANSWER_STEPS: Final = 1800
ANSWER_RATE: Final = 3e-3
ROUNDS: Final = 3  # at most
MARK: Final = 0.98  # share of questions about fresh pictures (not of the held-out kind) that ends the rounds
ENOUGH: Final = 0.95  # share of held-out questions that must be answered right


@dataclass(frozen=True, slots=True)
class Drawn:
    """Painted scenes: pixels [pictures, 3, CROP, CROP] and cell labels [pictures, cells, labels]."""

    scenes: list[pictures.Scene]
    pixels: Tensor
    cells: Tensor


def draw(amount: int, seed: int) -> Drawn:
    """Paint pictures for training, none of them of a held-out composition."""
    rng = random.Random(seed)
    drawn = list(itertools.islice(pictures.scenes(seed, held_out=False), amount))
    processor = tiny.make_processor()
    pixels = [
        processor([pictures.paint(scene, rng) for scene in drawn[start : start + CHUNK]], return_tensors="pt")[
            "pixel_values"
        ]
        for start in range(0, amount, CHUNK)
    ]
    return Drawn(drawn, torch.cat(pixels), learning.cell_labels(drawn))


def see(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """The features NeVA takes: hidden state -2 without the class token, [pictures, patches, width]."""
    states: tuple[Tensor, ...] = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    return states[-2][:, 1:]


def train_tower(tower: CLIPVisionModel, data: Drawn, steps: int, progress: Progress) -> None:
    """Teach the tower what stands in each cell, then round it to what bfloat16 can hold and freeze it."""
    head = nn.Linear(4 * tiny.TOWER_WIDTH, sum(learning.CELL_LABELS))
    for step in optimise([*tower.parameters(), *head.parameters()], TOWER_RATE, steps):
        chosen = torch.randint(len(data.scenes), (TOWER_BATCH,))
        guess = head(learning.by_cell(see(tower, data.pixels[chosen])))
        loss = learning.cell_loss(guess, data.cells[chosen])
        loss.backward()
        progress.step("tower", step, steps, loss)
    learning.round_to_bfloat16(tower)
    tower.requires_grad_(requires_grad=False).eval()


def pack(prompter: tiny.Prompter, asked: Sequence[Sequence[pictures.Question]]) -> learning.Packed:
    """Pack the questions of each picture behind the prompt's common beginning."""
    shared = prompter.media_start + tiny.PATCHES
    listed = [
        [(prompter.prompt(each.text)[shared:], prompter.answer_ids(each.answer)) for each in questions]
        for questions in asked
    ]
    return learning.pack([prompter.prompt("")[:shared]] * len(asked), listed, prompter.tokenizer.eos_id())


def train_answers(
    model: LlavaForConditionalGeneration,
    prompter: tiny.Prompter,
    data: Drawn,
    steps: int,
    seed: int,
    progress: Progress,
) -> None:
    """Teach projector and language model to answer; the tower stays as it is, so its features are computed once."""
    rng = random.Random(seed)
    with torch.no_grad():
        features = torch.cat([see(model.model.vision_tower, pixels) for pixels in data.pixels.split(CHUNK)])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for number in range(1, ROUNDS + 1):
        for step in optimise(trained, ANSWER_RATE / number, steps):
            chosen = rng.sample(range(len(data.scenes)), ANSWER_BATCH)
            packed = pack(prompter, [list(pictures.questions(data.scenes[index], rng).values()) for index in chosen])
            loss = answer_loss(model, prompter, packed, features[chosen])
            loss.backward()
            progress.step(f"answers, round {number}", step, steps, loss)
        share = share_right(evaluate.Model(model, tiny.make_processor(), prompter), seed + number, held_out=False)
        progress.say(f"answers, round {number}: {share:.1%} right about fresh pictures")
        if share >= MARK:
            return


def answer_loss(
    model: LlavaForConditionalGeneration, prompter: tiny.Prompter, packed: learning.Packed, seen: Tensor
) -> Tensor:
    """The mean cross entropy of all answers' tokens; `seen` are the tower's features, [pictures, patches, width]."""
    start, end = prompter.media_start, prompter.media_start + tiny.PATCHES
    text = model.model.language_model.embed_tokens(packed.ids)
    media = model.model.multi_modal_projector(seen)
    states = model.model.language_model(
        inputs_embeds=torch.cat([text[:, :start], media, text[:, end:]], dim=1),
        attention_mask=packed.sees,
        position_ids=packed.positions,
        use_cache=False,
    ).last_hidden_state
    learned = packed.targets != learning.UNLEARNED
    return functional.cross_entropy(model.lm_head(states[learned]), packed.targets[learned])


def share_right(model: evaluate.Model, seed: int, *, held_out: bool, amount: int = 500) -> float:
    """The share of `amount` questions that the model answers right, written out greedily."""
    asked = evaluate.take(evaluate.cases(seed, held_out=held_out), amount)
    return 1 - len(evaluate.wrong_answers(model, asked)) / amount


def corpus(seed: int) -> Iterator[str]:
    """Yield turns, questions and answers for the tokenizer, each on its own as it will be encoded."""
    rng = random.Random(seed)
    for scene in itertools.islice(pictures.scenes(seed, held_out=False), 500):
        for question in pictures.questions(scene, rng).values():
            yield from ("System", "User", "Assistant", question.text, question.answer)


def save(out: Path, model: LlavaForConditionalGeneration, tokenizer: bytes) -> None:
    """Write both archives, the tower's folder and the model for transformers."""
    shape = nemo_writer.LlamaShape(tiny.LAYERS, tiny.HEADS, tiny.GROUPS, tiny.PADDED_VOCAB)
    llama, projector = tiny.llama_state(model), tiny.part(model, "model.multi_modal_projector.")
    tiny.save_clip(out / "clip", model)
    tiny.save_hf(out / "hf", model, tokenizer)
    distributed = nemo_writer.distributed_state(llama, projector, tiny.tower_state(model), shape)
    classic = nemo_writer.classic_state(llama, projector, shape)
    for name, state, kind in (("neva.nemo", distributed, True), ("neva_ckpt.nemo", classic, False)):
        config = model_config(distributed=kind)
        nemo_writer.write_archive(out / name, config=config, tokenizer=tokenizer, state=state, distributed=kind)


def save_held_out(folder: Path, seed: int, amount: int = 18) -> None:
    """Write held-out pictures as PNG with questions and answers, two of each kind, for demonstrations and tests."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, case in enumerate(evaluate.take(evaluate.cases(seed, held_out=True), amount)):
        name = f"{number:02d}.png"
        case.picture.save(folder / name, optimize=True)
        listed.append({"picture": name, "question": case.question.text, "answer": case.question.answer})
    (folder / "heldout.json").write_text(json.dumps(listed, indent=2) + "\n")


def main() -> int:
    """Train, write, and ask; the exit code says whether enough held-out answers are right."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True, help="folder to write to; made if absent")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--effort", type=float, default=1.0, help="scales the number of training steps")
    wanted = arguments.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(wanted.seed)
    progress = Progress()
    data = draw(PICTURES, wanted.seed)
    progress.say(f"painted {PICTURES} pictures")
    tokenizer = tiny.train_tokenizer(corpus(wanted.seed))
    prompter = tiny.Prompter.from_bytes(tokenizer)
    model = tiny.make_model(prompter)
    train_tower(model.model.vision_tower, data, round(wanted.effort * TOWER_STEPS), progress)
    train_answers(model, prompter, data, round(wanted.effort * ANSWER_STEPS), wanted.seed, progress)
    wanted.out.mkdir(parents=True, exist_ok=True)
    save(wanted.out, model, tokenizer)
    save_held_out(wanted.out / "heldout", seed=1)
    share = share_right(evaluate.Model.from_folder(wanted.out / "hf"), 2, held_out=True)
    progress.say(f"{share:.1%} of held-out questions right; written to {wanted.out}")
    return 0 if share >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
