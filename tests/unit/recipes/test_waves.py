"""WAV files that the standard library wrote or that are taken apart here, and resampling against exact sines."""

from __future__ import annotations

import io
import struct
import wave
from math import ceil

import numpy as np
import pytest

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_recipes.waves import RATES, Wave, decode, resample, to_mono


def written(values: bytes, *, channels: int = 1, rate: int = 16_000, width: int = 2) -> bytes:
    """A file by the standard library's writer."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((channels, width, rate, 0, "NONE", ""))
        writer.writeframes(values)
    return file.getvalue()


def riff(tag: int, bits: int, body: bytes, *, channels: int = 1, rate: int = 16_000, extra: bytes = b"") -> bytes:
    """A file with any header, with an unknown chunk of odd length in it."""
    width = channels * bits // 8
    header = struct.pack("<HHIIHH", tag, channels, rate, rate * width, width, bits) + extra
    chunks = b"".join(
        name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
        for name, content in ((b"LIST", b"odd"), (b"fmt ", header), (b"data", body))
    )
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


STEPS = np.array([-1.0, -0.5, 0.0, 0.25, 0.75])


@pytest.mark.parametrize(
    ("data", "precision"),
    [
        (written((STEPS * 128 + 128).astype(np.uint8).tobytes(), width=1), 0),
        (written((STEPS * 2**15).astype("<i2").tobytes(), width=2), 0),
        (written(b"".join(int(x * 2**23).to_bytes(3, "little", signed=True) for x in STEPS), width=3), 0),
        (written((STEPS * 2**31).astype("<i4").tobytes(), width=4), 0),
        (riff(3, 32, STEPS.astype("<f4").tobytes()), 0),
        (riff(3, 64, STEPS.astype("<f8").tobytes()), 0),
        # An extensible header: valid bits, speakers, then the tag that counts at the head of a GUID.
        (riff(0xFFFE, 16, (STEPS * 2**15).astype("<i2").tobytes(), extra=struct.pack("<HHIH", 22, 16, 4, 1)), 0),
    ],
    ids=["8", "16", "24", "32", "float", "double", "extensible"],
)
def test_every_format_gives_the_same_samples(data: bytes, precision: float) -> None:
    found = decode(data, at="sound")
    assert found.rate == 16_000
    assert found.samples.dtype == np.float32
    assert np.abs(found.samples[:, 0] - STEPS).max() <= precision


def test_channels_are_averaged() -> None:
    both = np.array([[1000, 3000], [-2000, 0]], "<i2")
    sound = decode(written(both.tobytes(), channels=2), at="sound")
    assert sound.samples.shape == (2, 2)
    assert np.array_equal(to_mono(sound, 16_000) * 2**15, [2000, -1000])


def test_a_file_that_was_cut_gives_the_samples_that_are_there() -> None:
    whole = written(np.arange(100, dtype="<i2").tobytes())
    assert len(decode(whole[:-3], at="sound").samples) == 98


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no WAV file"),
        (b"fLaC" + bytes(60), "no WAV file"),
        (b"RIFF\0\0\0\0WAVE", "no format or no samples"),
        (written(b""), "0 samples"),
        (riff(1, 16, bytes(8), channels=0), "0 channels"),
        (riff(1, 16, bytes(8), rate=16_001), "16001 Hz"),
        (riff(1, 12, bytes(8)), "12 bits"),
        (riff(6, 8, bytes(8)), "format 6"),
        (riff(1, 16, bytes(8))[:40], "no format or no samples"),
    ],
    ids=["nothing", "flac", "no chunks", "empty", "channels", "rate", "bits", "alaw", "cut in the header"],
)
def test_what_is_no_sound_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(ProductError) as caught:
        decode(data, at="question.wav")
    failure = caught.value.failure
    assert (failure.reason, failure.at) == (Reason.REQUEST_REFUSED, "question.wav")
    assert says in failure.problem
    assert "ffmpeg" in failure.remedy


def sines(frequencies: list[float], rate: int, seconds: float = 0.5) -> np.ndarray:
    moments = np.arange(int(rate * seconds)) / rate
    return np.sum([np.sin(2 * np.pi * hertz * moments + hertz) for hertz in frequencies], axis=0)


@pytest.mark.parametrize("rate", sorted(RATES))
def test_what_both_rates_can_hold_is_kept(rate: int) -> None:
    top = min(rate, 16_000) / 2
    frequencies = [0.01 * top, 0.3 * top, 0.85 * top]
    found = resample(sines(frequencies, rate).astype(np.float32), rate, 16_000)
    wanted = sines(frequencies, 16_000)
    assert len(found) == ceil(int(rate * 0.5) * 16_000 / rate)
    edge = 300  # the sound is silent before its start: there the two differ
    assert np.abs(found[edge : len(wanted) - edge] - wanted[edge : len(found) - edge]).max() <= 5e-5


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_what_the_new_rate_cannot_hold_is_silent(rate: int) -> None:
    """Without a filter, 9 kHz would come back as 7 kHz."""
    found = resample(sines([9_000.0], rate).astype(np.float32), rate, 16_000)
    assert np.abs(found[300:-300]).max() <= 5e-5


@pytest.mark.parametrize("count", [1, 2, 5, 441])
def test_short_sounds_have_their_length(count: int) -> None:
    assert len(resample(np.ones(count, np.float32), 44_100, 16_000)) == ceil(count * 160 / 441)


def test_the_same_rate_changes_nothing() -> None:
    samples = np.arange(10, dtype=np.float32)
    assert resample(samples, 16_000, 16_000) is samples
    assert to_mono(Wave(samples[:, None], 16_000), 16_000).tolist() == samples.tolist()
