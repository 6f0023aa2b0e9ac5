"""Held-out cases as small files, with `heldout.json` beside them: pictures as PNG, videos as GIF, sounds as WAV."""

import json
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageSequence
from tiny import sounds
from tiny.answering import Case
from tiny.pictures import Question

LISTED: Final = "heldout.json"
Medium = list[Image.Image] | sounds.Samples
"""Frames, of a picture one; or a sound's samples."""

FRAME_MS: Final = 250
"""How long a frame of a video stands."""


def save(folder: Path, listed: Sequence[Sequence[Case]]) -> None:
    """Write media, each once, and all questions about them.

    Args:
        folder: Made if absent.
        listed: The cases of each medium.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, cases in enumerate(listed):
        kind, name = _write(folder, f"{number:02d}", cases[0].medium)
        written += [{kind: name, "question": case.question.text, "answer": case.question.answer} for case in cases]
    (folder / LISTED).write_text(json.dumps(written, indent=2) + "\n")


def read(folder: Path) -> list[Case]:
    """The cases as they were written; a picture is a list of one frame."""
    cases = []
    for each in json.loads((folder / LISTED).read_text()):
        kind = next(kind for kind in ("picture", "video", "sound") if kind in each)
        cases.append(Case(_read(folder / each[kind]), Question(each["question"], each["answer"]), "listed"))
    return cases


def _write(folder: Path, stem: str, medium: Medium) -> tuple[str, str]:
    if isinstance(medium, np.ndarray):
        with wave.open(str(folder / f"{stem}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(sounds.RATE)
            file.writeframes((medium * 32768).astype("<i2").tobytes())
        return "sound", f"{stem}.wav"
    first, *others = medium
    if others:
        # Flat colours: a palette holds them all.
        first.save(
            folder / f"{stem}.gif", save_all=True, append_images=others, duration=FRAME_MS, optimize=True, loop=0
        )
        return "video", f"{stem}.gif"
    first.save(folder / f"{stem}.png", optimize=True)
    return "picture", f"{stem}.png"


def _read(path: Path) -> Medium:
    if path.suffix == ".wav":
        with wave.open(str(path), "rb") as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        return (samples / 32768).astype(np.float32)
    with Image.open(path) as picture:
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]
