"""Damage, by chance but repeatable: a seed gives the same bytes on every machine."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

NUMBERS: Final = tuple(
    struct.pack(form, value)
    for form, value in (
        *(("<B", n) for n in (0, 1, 0x7F, 0x80, 0xFF)),
        *(("<H", n) for n in (0, 0x7FFF, 0xFFFF)),
        *(("<I", n) for n in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)),
        *(("<Q", n) for n in (0, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1)),
    )
)
TEXTS: Final = (
    *(b"..", b"/", b"../../outside", b"/tmp/outside", b"\0", b"\n", b'"', b"{", b"}", b"[", b"]", b":", b"-", b"!"),
    *(b"null", b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 40, b"<<: *a", b"&a ", b"!!python/object:os.system "),
    *(b"cposix\nsystem\n", b"\x80\x04", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"model_weights.ckpt"),
)


def flip(data: bytearray, chance: random.Random, _others: Sequence[bytes]) -> None:
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def overwrite(data: bytearray, chance: random.Random, _others: Sequence[bytes]) -> None:
    piece = chance.choice(NUMBERS + TEXTS)
    at = chance.randrange(len(data))
    data[at : at + len(piece)] = piece


def insert(data: bytearray, chance: random.Random, _others: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    data[at:at] = chance.choice((*NUMBERS, *TEXTS, chance.randbytes(chance.randint(1, 64))))


def cut(data: bytearray, chance: random.Random, _others: Sequence[bytes]) -> None:
    del data[chance.randrange(len(data)) :]


def remove(data: bytearray, chance: random.Random, _others: Sequence[bytes]) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.randint(1, 600)]


def repeat(data: bytearray, chance: random.Random, _others: Sequence[bytes]) -> None:
    at = chance.randrange(len(data))
    data[at:at] = data[at : at + chance.randint(1, 1024)] * chance.randint(1, 3)


def splice(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    other = chance.choice(others)
    data[chance.randrange(len(data)) :] = other[chance.randrange(len(other)) :]


WAYS: Final[tuple[Callable[[bytearray, random.Random, Sequence[bytes]], None], ...]] = (
    *(flip, flip, overwrite, overwrite, overwrite),
    *(insert, cut, remove, repeat, splice),
)


def mutate(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """Damage in one to three ways.

    Args:
        data: Whole.
        chance: Seeded.
        others: Whole files of other forms, parts of which may be put in.
    """
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        if changed:
            chance.choice(WAYS)(changed, chance, others)
    return bytes(changed)
