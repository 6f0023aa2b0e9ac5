"""Synthetic sounds with questions and answers: how many beeps, how high, what comes first; and NeMo's mel front end."""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from tiny.pictures import EVEN, HELD_OUT_SHARE, NUMBERS, Question
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

RATE: Final = 16_000
MELS: Final = 80
WINDOW: Final = 400  # samples: 25 ms
HOP: Final = 160  # samples: 10 ms
FFT: Final = 512
PREEMPHASIS: Final = 0.97
MOST_BEEPS: Final = 5
HEARD: Final = 0.05  # seconds of a part within a row that the row should tell

PITCHES: Final = {"high": (1500.0, 2400.0), "low": (250.0, 420.0)}
"""Hertz, from and to."""

NAMES: Final = ("beep", "rising tone", "falling tone", "noise")

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """One sound: `beep`, `rising tone`, `falling tone` or `noise`, from `start` for `length` seconds."""

    name: str
    pitch: str
    start: float
    length: float


@dataclass(frozen=True, slots=True)
class Sound:
    """What a recording holds: beeps of one pitch, or two or three different parts."""

    parts: tuple[Part, ...]
    composition: str

    @property
    def held_out(self) -> bool:
        """Whether the sound belongs to the test set."""
        return zlib.crc32(self.composition.encode()) % HELD_OUT_SHARE == 0

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.parts[-1].start + self.parts[-1].length + 0.2


def beeps(rng: random.Random) -> Sound:
    """One to five beeps of one pitch, evenly spaced."""
    count, pitch = rng.randint(1, MOST_BEEPS), rng.choice(sorted(PITCHES))
    length, gap = rng.uniform(0.12, 0.24), rng.uniform(0.16, 0.4)
    start = rng.uniform(0.05, 0.6)
    parts = tuple(Part("beep", pitch, start + number * (length + gap), length) for number in range(count))
    return Sound(parts, f"{count} {pitch} {round(length / 0.04)} {round(gap / 0.08)}")


def sequence(rng: random.Random) -> Sound:
    """Two or three different parts, one after the other."""
    names = rng.sample(NAMES, rng.choice((2, 2, 3)))
    start = rng.uniform(0.05, 0.4)
    parts = []
    for name in names:
        parts.append(Part(name, rng.choice(sorted(PITCHES)), start, rng.uniform(0.4, 0.7)))
        start = parts[-1].start + parts[-1].length + rng.uniform(0.15, 0.4)
    return Sound(tuple(parts), " ".join(f"{part.name} {part.pitch}" for part in parts))


def sounds(seed: int, held_out: bool) -> Iterator[Sound]:  # noqa: FBT001 - a World's signature
    """Yield sounds without end: of the test set when `held_out`, else only sounds the test set can never hold."""
    rng = random.Random(f"{seed} {held_out} sounds")
    while True:
        sound = beeps(rng) if rng.random() < EVEN else sequence(rng)
        if sound.held_out == held_out:
            yield sound


def ask(sound: Sound, rng: random.Random) -> dict[str, Question]:
    """Every kind of question about a sound, by kind."""
    names = [part.name for part in sound.parts]
    if set(names) == {"beep"}:
        count, pitch = len(names), sound.parts[0].pitch
        heard = f"a {pitch} beep" if count == 1 else f"{NUMBERS[count]} {pitch} beeps"
        return {
            "count": Question("How many beeps are there?", NUMBERS[count]),
            "pitch": Question("Are the beeps high or low?" if count > 1 else "Is the beep high or low?", pitch),
            "heard": Question("What do you hear?", heard),
        }
    asked_for = rng.choice(NAMES)
    asked = {
        "first": Question("What comes first?", _article(names[0])),
        "last": Question("What comes last?", _article(names[-1])),
        "order": Question("What do you hear?", ", then ".join(map(_article, names))),
        "exists": Question(f"Is there {_article(asked_for)}?", "yes" if asked_for in names else "no"),
    }
    tones = [name for name in names if name.endswith("tone")]
    if len(tones) == 1:
        asked["direction"] = Question("Does the tone rise or fall?", "rise" if tones[0].startswith("r") else "fall")
    return asked


def _article(name: str) -> str:
    return name if name == "noise" else f"a {name}"


def record(sound: Sound, rng: random.Random) -> Samples:
    """The samples, [samples], -1 to 1, of 16 bits; `rng` sets pitches, loudness and a faint hiss."""
    amount = round(sound.duration * RATE)
    noise = np.random.default_rng(rng.randrange(2**32))
    samples = noise.normal(0.0, rng.uniform(0.0005, 0.005), amount)
    tones = {pitch: rng.uniform(low, high) for pitch, (low, high) in PITCHES.items()}
    for part in sound.parts:
        tone = tones[part.pitch]
        length = round(part.length * RATE)
        share = np.arange(length) / length
        if part.name == "noise":
            wave = noise.normal(0.0, 0.35, length)
        else:
            ends = {"beep": (tone, tone), "rising tone": (tone, 2 * tone), "falling tone": (2 * tone, tone)}[part.name]
            wave = np.sin(2 * np.pi * np.cumsum(ends[0] + (ends[1] - ends[0]) * share) / RATE)
        # Ends of 10 ms without a click.
        envelope = np.minimum(1.0, np.minimum(share, 1 - share) * part.length / 0.01)
        start = round(part.start * RATE)
        samples[start : start + length] += rng.uniform(0.25, 0.5) * wave * envelope
    kept: Samples = (np.round(np.clip(samples, -1, 1) * 32767) / 32768).astype(np.float32)
    return kept


@cache
def mel_bank() -> Tensor:
    """NeMo's `featurizer.fb` without its first axis, [MELS, FFT / 2 + 1]: Slaney's bands and norm, 0 to 8000 Hz."""
    bank = mel_filter_bank(FFT // 2 + 1, MELS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(bank.T).float().contiguous()


def window() -> Tensor:
    """NeMo's `featurizer.window`: a symmetric Hann window."""
    return torch.hann_window(WINDOW, periodic=False)


def mels(samples: Samples) -> Tensor:
    """NeMo 1's mel spectrogram in evaluation, [frames, MELS]: frames = samples // HOP + 1.

    Pre-emphasis, a centred transform with reflected ends, power, log(x + 2^-24), and per band mean 0 and deviation 1.
    """
    signal = torch.from_numpy(samples)
    signal = torch.cat([signal[:1], signal[1:] - PREEMPHASIS * signal[:-1]])
    spectrum = torch.stft(signal, FFT, HOP, WINDOW, window(), center=True, pad_mode="reflect", return_complex=True)
    bands = torch.log(mel_bank() @ spectrum.abs().square() + 2**-24)
    mean, deviation = bands.mean(dim=1, keepdim=True), bands.std(dim=1, keepdim=True)
    return ((bands - mean) / (deviation + 1e-5)).T


CLASSES: Final = tuple((name, pitch) for name in NAMES for pitch in sorted(PITCHES))


def row_labels(sound: Sound, rows: int) -> Tensor:
    """What each row (0.64 s) should tell, [rows, labels]: which parts sound, and how many begin."""
    labels = torch.zeros(rows, len(CLASSES) + MOST_BEEPS)
    for row in range(rows):
        start, end = _span(row)
        for part in sound.parts:
            if min(end, part.start + part.length) - max(start, part.start) > HEARD:
                labels[row, CLASSES.index((part.name, "low" if part.name == "noise" else part.pitch))] = 1
        labels[row, len(CLASSES) + min(_begun(sound, start, end), MOST_BEEPS - 1)] = 1
    return labels


def deep_labels(sound: Sound, rows: int) -> Tensor:
    """What the language model should know at each row, [rows, labels]: how many parts have begun so far."""
    labels = torch.zeros(rows, MOST_BEEPS + 1)
    for row in range(rows):
        labels[row, _begun(sound, -1.0, _span(row)[1])] = 1
    return labels


def _span(row: int) -> tuple[float, float]:
    """The seconds that a row stands for: strided convolutions centre it on its first frame."""
    return (row - 0.5) * 64 * HOP / RATE, (row + 0.5) * 64 * HOP / RATE


def _begun(sound: Sound, start: float, end: float) -> int:
    return sum(start <= part.start < end for part in sound.parts)
