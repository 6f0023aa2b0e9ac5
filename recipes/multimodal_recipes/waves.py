"""Sound files: from the bytes of a WAV file to one channel at the sample rate that a model takes."""

from __future__ import annotations

import struct
from math import ceil, gcd
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    _Reader = Callable[[memoryview], NDArray[np.float32]]

RATES: Final = frozenset({
    *(8_000, 16_000, 32_000, 12_000, 24_000, 48_000, 96_000, 192_000, 11_025, 22_050, 44_100, 88_200, 176_400),
})  # fmt: skip
"""Sample rates that are taken, in Hz: those of recorders. Odd ones would make resampling expensive."""

MAX_SAMPLES: Final = 2**25
"""Of one channel: 35 minutes at 16 kHz, beyond which a request is refused."""

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_RIFF: Final = struct.Struct("<4sI4s")
_CHUNK: Final = struct.Struct("<4sI")
_FORMAT: Final = struct.Struct("<HHIIHH")  # tag, channels, rate, bytes per second, bytes per frame, bits
_SUBFORMAT: Final = slice(24, 26)
"""Where an extensible header keeps the tag that it is about."""

ZEROS: Final = 48
"""Zero crossings of the resampling filter on each side."""
ROLLOFF: Final = 0.945
"""End of the pass band, of the lower of both Nyquist frequencies."""
TAPER: Final = (0.3635819, 0.4891775, 0.1365995, 0.0106411)
"""Cosines of the filter's window, Blackman-Nuttall's: what is cut off is 98 dB down."""


class Wave(NamedTuple):
    """A sound as it was recorded."""

    samples: NDArray[np.float32]
    """[samples, channels], full scale is -1 to 1."""
    rate: int
    """In Hz."""

    def samples_at(self, rate: int) -> int:
        """Count the samples that `to_mono` gives at a rate."""
        return _resampled(len(self.samples), self.rate, rate)


def decode(data: bytes, *, at: str) -> Wave:
    """Decode a WAV file.

    Args:
        data: Content of the file: integers of 8, 16, 24 or 32 bits, or floats of 32 or 64.
        at: What to call it in an error.

    Raises:
        ProductError: not such a file, or truncated, empty or too long.
    """
    try:
        tag, channels, rate, bits, body = _parse(data)
    except (struct.error, ValueError) as wrong:
        raise _refused(at, f"{len(data)} bytes that are no WAV file: {wrong}") from None
    read = _READERS.get((tag, bits))
    if read is None:
        raise _refused(at, f"samples of format {tag} and {bits} bits")
    width = channels * bits // 8
    if channels < 1 or rate not in RATES:
        raise _refused(at, f"{channels} channels at {rate} Hz, which is no rate of a recorder")
    frames = len(body) // width
    if not 1 <= frames <= MAX_SAMPLES:
        raise _refused(at, f"{frames} samples, where 1 to {MAX_SAMPLES} are taken")
    return Wave(read(body[: frames * width]).reshape(frames, channels), rate)


def _parse(data: bytes) -> tuple[int, int, int, int, memoryview]:
    """Read the header: format tag, channels, rate and bits; and find the samples."""
    kind, _, form = _RIFF.unpack_from(data)
    if (kind, form) != (b"RIFF", b"WAVE"):
        raise ValueError("it does not begin with RIFF and WAVE")
    chunks = dict(_chunks(memoryview(data)))
    if b"fmt " not in chunks or b"data" not in chunks:
        raise ValueError("it has no format or no samples")
    header = chunks[b"fmt "]
    tag, channels, rate, _, _, bits = _FORMAT.unpack_from(header)
    if tag == _EXTENSIBLE:
        tag = int.from_bytes(header[_SUBFORMAT], "little")
    return tag, channels, rate, bits, chunks[b"data"]


def _chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Go through the chunks; recorders that stream give a length that goes past the end."""
    start = _RIFF.size
    while start + _CHUNK.size <= len(data):
        name, size = _CHUNK.unpack_from(data, start)
        start += _CHUNK.size
        yield name, data[start : start + size]
        start += size + size % 2


def _integers(kind: str, bits: int) -> _Reader:
    return lambda body: np.frombuffer(body, kind).astype(np.float32) / np.float32(2 ** (bits - 1))


def _unsigned(body: memoryview) -> NDArray[np.float32]:
    return (np.frombuffer(body, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)


def _three_bytes(body: memoryview) -> NDArray[np.float32]:
    """Widen to four bytes: the lowest one is zero."""
    wide = np.zeros((len(body) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(body, np.uint8).reshape(-1, 3)
    return wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)


def _floats(kind: str) -> _Reader:
    return lambda body: np.frombuffer(body, kind).astype(np.float32)


_READERS: Final[Mapping[tuple[int, int], _Reader]] = {
    (_PCM, 8): _unsigned,
    (_PCM, 16): _integers("<i2", 16),
    (_PCM, 24): _three_bytes,
    (_PCM, 32): _integers("<i4", 32),
    (_FLOAT, 32): _floats("<f4"),
    (_FLOAT, 64): _floats("<f8"),
}
"""By format tag and bits."""


def to_mono(wave: Wave, rate: int) -> NDArray[np.float32]:
    """Average the channels and resample.

    Args:
        wave: As it was recorded.
        rate: Wanted sample rate, in Hz.

    Returns:
        [samples], `ceil(n * rate / wave.rate)` of them.
    """
    return resample(wave.samples.mean(axis=1, dtype=np.float32), wave.rate, rate)


def resample(samples: NDArray[np.float32], source: int, target: int) -> NDArray[np.float32]:
    """Change the sample rate with a windowed-sinc filter; the signal is zero before its start and behind its end.

    Args:
        samples: [n].
        source: Its rate, in Hz.
        target: Wanted rate, in Hz.

    Returns:
        [ceil(n * target / source)]; `samples` itself when the rates are equal.
    """
    if source == target:
        return samples
    up, down = target // gcd(source, target), source // gcd(source, target)
    cutoff = ROLLOFF * min(1.0, up / down)
    half = ceil(ZEROS / cutoff)
    count = _resampled(len(samples), source, target)
    padded = np.pad(samples, (half, half + down))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half)
    resampled = np.empty(count, np.float32)
    # Outputs `up` apart lie equally far from the inputs around them: they share one filter.
    for phase in range(min(up, count)):
        first, rest = divmod(phase * down, up)
        number = len(range(phase, count, up))
        kernel = _kernel(rest / up, half, cutoff)
        # Window w holds the inputs w - half … w + half - 1; the filter is centred between inputs `first` and the next.
        resampled[phase::up] = windows[first + 1 :: down][:number] @ kernel
    return resampled


def _resampled(samples: int, source: int, target: int) -> int:
    return -(-samples * target // source)


def _kernel(offset: float, half: int, cutoff: float) -> NDArray[np.float32]:
    """Give the filter for a moment that lies `offset` behind the input at index half - 1; [2 * half]."""
    distance = np.arange(1 - half, half + 1) - offset
    window = sum(part * np.cos(order * np.pi * distance / half) for order, part in enumerate(TAPER))
    return np.asarray(cutoff * np.sinc(cutoff * distance) * window, dtype=np.float32)


def _refused(at: str, problem: str) -> ProductError:
    return ProductError(
        Reason.REQUEST_REFUSED,
        at=at,
        problem=problem,
        remedy="give a WAV file of 8, 16, 24 or 32 bits, for example `ffmpeg -i FILE -ar 16000 -ac 1 out.wav`",
    )
