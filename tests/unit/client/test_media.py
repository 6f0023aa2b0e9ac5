from __future__ import annotations

import io
import struct
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multimodal_api import wire
from multimodal_api.errors import ProductError
from multimodal_api.families import FAMILIES, Family, Modality
from multimodal_client import Client, NemoQueryMultimodal, kserve
from multimodal_client import main as command
from multimodal_client.media import load
from multimodal_recipes.waves import Wave
from support.clips import LOSSLESS, animate, encode, noise
from tests.unit.client.conftest import KServe

SIGNAL = np.array([0, 0.5, -0.25, 1 - 2**-15], np.float32)
VIDEO = noise(3)
LONG = np.arange(300, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
THINNED = np.round(np.linspace(0, 299, 150)).astype(int)
"""What NeMo's client sends of 300 frames: round(300 / 2) of them."""


def wav(rate: int = wire.SAMPLE_RATE, channels: int = 1) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(struct.pack("<4h", *(SIGNAL * 2**15).astype(int)))
    return stream.getvalue()


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(VIDEO[0]).save(stream, "PNG")
    return stream.getvalue()


CONTENT = {
    Family.NEVA: png(),
    Family.VILA: png(),
    Family.VIDEO_NEVA: encode(VIDEO, LOSSLESS["mp4"]),
    Family.LITA: encode(VIDEO, LOSSLESS["webm"]),
    Family.VITA: animate(VIDEO, "WEBP", lossless=True, exact=True),
    Family.SALM: wav(),
}


@pytest.mark.parametrize("family", Family)
def test_nemo_s_client_and_script_send_every_family_s_tensors(
    monkeypatch: pytest.MonkeyPatch, server: KServe, tmp_path: Path, family: Family
) -> None:
    path = tmp_path / "medium"
    path.write_bytes(CONTENT[family])
    answers = NemoQueryMultimodal(server.address, "m", family.value).query("?", str(path))
    assert answers.tolist() == [["a red circle"]]
    words = ["-u", server.address, "-mn", "m", "-mt", family.value, "-int", "?", "-im", str(path)]
    monkeypatch.setattr("sys.argv", ["mmd", "query", *words])
    assert command.main() == 0
    inputs = wire.AUDIO_INPUTS if FAMILIES[family].modality is Modality.AUDIO else wire.VISION_INPUTS
    for asked in server.asked:
        assert set(asked.tensors) == {tensor.name for tensor in inputs} - {"lora_uids"}
        if family is Family.SALM:
            assert np.array_equal(asked.tensors["input_signal"], SIGNAL[None])
            assert asked.tensors["input_signal"].dtype == np.float32
            assert asked.tensors["input_signal_length"].tolist() == [[4]]
            assert asked.tensors["input_signal_length"].dtype == np.int32
        else:
            frames = VIDEO[:1] if family in {Family.NEVA, Family.VILA} else VIDEO
            assert np.array_equal(asked.tensors["input_media"], frames[None])


@pytest.mark.parametrize(
    ("family", "places"), [(Family.VIDEO_NEVA, range(300)), (Family.LITA, THINNED), (Family.VITA, THINNED)]
)
@pytest.mark.parametrize("array", [True, False], ids=["array", "file"])
def test_long_videos_are_thinned_for_lita_and_vita(
    server: KServe, family: Family, places: np.ndarray, *, array: bool
) -> None:
    media = LONG if array else encode(LONG, LOSSLESS["mkv"])
    Client(server.address, "m", family=family).query("?", media)
    assert np.array_equal(server.asked[0].tensors["input_media"], LONG[list(places)][None])


@pytest.mark.parametrize("family", Family)
def test_media_come_from_standard_input(monkeypatch: pytest.MonkeyPatch, server: KServe, family: Family) -> None:
    client = Client(server.address, "m", family=family)
    client.query("?", CONTENT[family])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CONTENT[family])))
    client.query("?", "-")
    from_bytes, from_stdin = (asked.tensors for asked in server.asked)
    assert from_bytes.keys() == from_stdin.keys()
    assert all(np.array_equal(tensor, from_stdin[name]) for name, tensor in from_bytes.items())


def test_sounds_of_another_rate_and_of_two_channels_are_mixed_and_resampled(server: KServe) -> None:
    client = Client(server.address, "m", family=Family.SALM)
    seconds = np.arange(8000) / 8000
    tone = np.sin(2 * np.pi * 440 * seconds)
    client.query("?", Wave(np.stack([tone, np.zeros_like(tone)], axis=1).astype(np.float32), 8000))
    tensors = server.asked[0].tensors
    assert tensors["input_signal_length"].item() == tensors["input_signal"].size == 16000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    middle = slice(200, -200)  # the filter sees silence beyond both ends
    assert np.abs(tensors["input_signal"][0] - expected)[middle].max() < 1e-3
    client.query("?", wav(8000, channels=2))
    assert server.asked[1].tensors["input_signal_length"].item() == 4


def test_a_signal_may_be_an_array(server: KServe) -> None:
    Client(server.address, "m", family=Family.SALM).query("?", SIGNAL)
    assert np.array_equal(server.asked[0].tensors["input_signal"], SIGNAL[None])


@pytest.mark.parametrize(
    ("family", "media", "words"),
    [
        (Family.SALM, png(), "no WAV file"),
        (
            Family.SALM,
            SIGNAL.astype(np.float64),
            "an array of float64 .*; give float32 of shape .samples., one channel",
        ),
        (Family.SALM, SIGNAL[:0], "without samples"),
        (Family.LITA, VIDEO[0], r"shape \[34, 48, 3\]; give uint8 of shape \[frames, height, width, 3\]"),
        (Family.LITA, VIDEO[:0], r"shape \[0, 34, 48, 3\]"),
        (Family.LITA, wav(), "bytes that are no picture"),
        (Family.NEVA, VIDEO, r"give uint8 of shape \[height, width, 3\]"),
        (Family.VILA, CONTENT[Family.VIDEO_NEVA], "bytes that are no picture"),
        (Family.VITA, Wave(SIGNAL[:, None], 16000), "a sound, where the model sees"),
    ],
)
def test_what_a_family_does_not_take_is_never_sent(server: KServe, family: Family, media: object, words: str) -> None:
    with pytest.raises(ProductError, match=words):
        Client(server.address, "m", family=family).query("?", media)  # type: ignore[arg-type]
    assert server.asked == []


def test_frames_are_not_copied_on_their_way() -> None:
    tensor = load(VIDEO, Family.VIDEO_NEVA).tensors["input_media"]
    assert np.shares_memory(np.frombuffer(kserve.to_bytes(tensor), np.uint8), VIDEO)
