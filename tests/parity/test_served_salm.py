"""The tiny SALM through the front and a real worker process, against a second account of the whole model.

The reference is `support.naive_conformer` on the archive's own tensors, SentencePiece on the archive's own model, and
transformers' Llama. Only Triton is left out: `tests/triton` has it.
"""

from __future__ import annotations

import asyncio
import io
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from numpy.typing import NDArray
from tiny.answering import Case
from tiny.judging import accepts
from transformers import LlamaForCausalLM

from multimodal_api.engine import MODEL_DIR
from multimodal_api.worker_protocol import Ready, Sampling
from multimodal_modeling.audio import AudioEncoder
from multimodal_recipes.audio import preprocess
from multimodal_recipes.waves import Wave
from multimodal_server.answers import Responder
from multimodal_server.engine import open_engine
from multimodal_server.limits import SOUND_NAMES
from multimodal_server.metrics import Metrics
from multimodal_server.questions import Question, Said
from multimodal_server.worker_client import WorkerClient
from multimodal_worker.device import DeviceThread
from multimodal_worker.encoder import BatchedEncoder, MediaCache
from support import tiny_salm
from support.answering import answer, pieces
from support.archives import CKPT, Archive
from support.naive_conformer import hear
from support.sounds import FRONT_END, RATE

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5
"""Of log probabilities in float32, and of rows, relative to the largest."""
WRONG = 100
"""A mistake moves them by more than so many tolerances."""
START_SECONDS = 100.0


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_salm.build(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def served(engine: Path) -> Iterator[Responder]:
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    worker = WorkerClient.start(engine, events.put)
    ready = events.get(timeout=START_SECONDS)
    assert isinstance(ready, Ready), ready
    yield Responder(open_engine(engine), worker, Metrics())
    worker.stop()


@pytest.fixture(scope="module")
def reference(engine: Path) -> Reference:
    return Reference(engine)


class Reference:
    """Training's own way: the sound's rows, then the text's, then the answer's."""

    def __init__(self, engine: Path) -> None:
        archive = Archive.read(tiny_salm.ARCHIVE)
        model = archive.members[archive.config()["tokenizer"]["model"].removeprefix("nemo:")]
        state = torch.load(io.BytesIO(archive.members[CKPT]), weights_only=False)
        self.state = {name: tensor.float() for name, tensor in state.items() if name.startswith("perception.")}
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.llm: Any = LlamaForCausalLM.from_pretrained(engine / MODEL_DIR / "llm", dtype=torch.float32).eval()

    @torch.inference_mode()
    def logprobs(self, samples: NDArray[np.float32], question: str, answer: list[int]) -> torch.Tensor:
        """[answer and its end, vocabulary], each given what comes before it."""
        rows = hear(self.state, torch.from_numpy(preprocess(samples, FRONT_END, at="sound")))
        text = [*self.pieces.encode(f"Q: {question}\nA:"), *answer]
        embeddings = torch.cat([rows, self.llm.get_input_embeddings()(torch.tensor(text))])
        logits: torch.Tensor = self.llm(inputs_embeds=embeddings[None]).logits[0, -len(answer) - 1 :]
        return logits[:, : self.pieces.vocab_size()].log_softmax(-1)


def scored(served: Responder, samples: NDArray[np.float32], question: str) -> tuple[list[int], torch.Tensor]:
    """The tokens of a greedy answer, and what the worker says of them: [tokens, best], as pairs of id and logprob."""
    asked = Question(
        turns=(Said((Wave(samples[:, None], RATE), question)),),
        sampling=Sampling(),
        max_output_len=32,
        names=SOUND_NAMES,
        top_logprobs=5,
    )
    ready = served.prepare(asked)
    given = list(pieces(served, ready))
    tokens = [token for piece in given for token in piece.token_ids]
    return tokens, torch.tensor([score.top for piece in given for score in piece.scores])


def difference(top: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference of what the worker says, relative to the largest that it says."""
    found = wanted[: len(top)].gather(1, top[..., 0].long())
    return float((found - top[..., 1]).abs().max() / top[..., 1].abs().max())


def sounds() -> list[Case]:
    return list({case.question.text: case for case in tiny_salm.cases()}.values())


@pytest.mark.parametrize("case", sounds(), ids=lambda case: case.question.text)
def test_the_worker_s_numbers_are_the_reference_s(served: Responder, reference: Reference, case: Case) -> None:
    tokens, top = scored(served, case.medium, case.question.text)
    wanted = reference.logprobs(case.medium, case.question.text, tokens)
    assert difference(top, wanted) <= TOLERANCE
    assert wanted.argmax(-1).tolist() == [*tokens, reference.pieces.eos_id()]


def test_a_sound_without_its_last_row_is_seen_in_the_numbers(served: Responder, reference: Reference) -> None:
    case = tiny_salm.cases()[0]
    tokens, top = scored(served, case.medium, case.question.text)
    shorter = case.medium[: -64 * FRONT_END.hop]
    assert difference(top, reference.logprobs(shorter, case.question.text, tokens)) > WRONG * TOLERANCE


@pytest.mark.parametrize("form", ["{}", "Q: {} A:"], ids=["bare", "as NeMo's clients send it"])
def test_every_held_out_question_is_answered_among_others(served: Responder, form: str) -> None:
    def ask(case: Case) -> str:
        tensors: dict[str, NDArray[Any]] = {
            "input_text": np.array([[form.format(case.question.text).encode()]], dtype=object),
            "input_signal": case.medium[None],
            "input_signal_length": np.array([[len(case.medium)]], np.int32),
        }
        return answer(served, tensors)[0]

    cases = tiny_salm.cases()
    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(ask, cases))
    wrong = [
        (case.question, answer)
        for case, answer in zip(cases, said, strict=True)
        if not accepts(case.question.answer, answer)
    ]
    assert wrong == []


def test_a_sound_is_encoded_once(served: Responder) -> None:
    case = tiny_salm.cases()[0]
    scored(served, case.medium, case.question.text)
    before = served.worker.stats(START_SECONDS)
    scored(served, case.medium, "What do you hear?")
    after = served.worker.stats(START_SECONDS)
    assert before is not None
    assert after is not None
    assert (after.media_cache_hits - before.media_cache_hits, after.media_cache_misses - before.media_cache_misses) == (
        1,
        0,
    )


async def test_sounds_of_unequal_lengths_share_a_batch_and_keep_their_rows(engine: Path, reference: Reference) -> None:
    """What a worker with a GPU does; on a CPU each sound is a batch of its own."""
    encoder = AudioEncoder.load(engine / MODEL_DIR, device=torch.device("cpu"))
    sizes: list[int] = []

    def together(sounds: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        sizes.append(len(sounds))
        return AudioEncoder.encode_together(encoder, sounds)

    encoder.encode_together = together  # type: ignore[method-assign] # counted
    thread = DeviceThread()
    batched = BatchedEncoder(encoder, thread, max_batch=4, cache=MediaCache())
    heard = {
        len(case.medium): torch.from_numpy(preprocess(case.medium, FRONT_END, at="sound")) for case in tiny_salm.cases()
    }
    found = await asyncio.gather(*(batched.encode(frames[None]) for frames in heard.values()))
    thread.close()
    assert len(heard) > 2
    assert max(sizes) > 1
    for (rows,), frames in zip(found, heard.values(), strict=True):
        wanted = hear(reference.state, frames)
        assert rows.shape == wanted.shape
        assert float((rows - wanted).abs().max() / wanted.abs().max()) <= TOLERANCE
