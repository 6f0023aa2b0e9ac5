"""SentencePiece model files: the few fields that decide how text becomes pieces.

The file is a protocol buffer (`sentencepiece_model.proto`); its wire format is read here, because the library's own
message classes ask for one version of the protobuf package, and other packages of the image for another.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from multimodal_builder.checkpoints.errors import unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator


class PieceKind(IntEnum):
    """`SentencePiece.Type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelKind(IntEnum):
    """`TrainerSpec.ModelType`."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What is read of a model file; defaults are the format's."""

    pieces: tuple[Piece, ...]
    kind: ModelKind
    byte_fallback: bool
    whitespace_as_suffix: bool
    unk_id: int
    charsmap: bytes
    """Precompiled normalisation of characters; empty for none."""
    add_dummy_prefix: bool
    """Whether a space is put in front of every text."""
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_LIMIT: Final = 70  # bits: ten bytes of seven

Value = int | bytes


def parse(data: bytes, at: str) -> SentencePieceModel:
    """Read a model file.

    Raises:
        ProductError: it is none.
    """
    try:
        fields = list(_fields(data))
        trainer = dict(_fields(b"".join(_submessages(fields, 2))))
        normalizer = dict(_fields(b"".join(_submessages(fields, 3))))
        return SentencePieceModel(
            pieces=_pieces(fields),
            kind=ModelKind(_number(trainer.get(3, 1))),
            whitespace_as_suffix=bool(trainer.get(24, 0)),
            byte_fallback=bool(trainer.get(35, 0)),
            unk_id=_number(trainer.get(40, 0)),
            charsmap=_text(normalizer.get(2, b"")),
            add_dummy_prefix=bool(normalizer.get(3, 1)),
            remove_extra_whitespaces=bool(normalizer.get(4, 1)),
            escape_whitespaces=bool(normalizer.get(5, 1)),
        )
    except (ValueError, IndexError, struct.error) as error:
        raise unreadable(at, f"not a SentencePiece model: {error}") from error


def _pieces(fields: list[tuple[int, Value]]) -> tuple[Piece, ...]:
    pieces = tuple(_piece(message) for message in _submessages(fields, 1))
    if not pieces:
        raise ValueError("it has no pieces")
    return pieces


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    (score,) = struct.unpack("<f", _text(fields.get(2, bytes(4))))
    return Piece(_text(fields.get(1, b"")).decode(), score, PieceKind(_number(fields.get(3, 1))))


def _submessages(fields: list[tuple[int, Value]], number: int) -> Iterator[bytes]:
    return (_text(value) for found, value in fields if found == number)


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Read a message's fields: number and value; fixed-size numbers are given as their bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        elif wire in {_FIXED64, _FIXED32}:
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + size > len(data):
            raise ValueError("it is truncated")
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, _VARINT_LIMIT, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 (the continuation bit)
            return value, position
    raise ValueError("a number is too long")


def _number(value: Value) -> int:
    if isinstance(value, bytes):
        raise ValueError("a number is missing")  # noqa: TRY004 (one error for all damage)
    return value


def _text(value: Value) -> bytes:
    if isinstance(value, int):
        raise ValueError("a text is missing")  # noqa: TRY004 (one error for all damage)
    return value
