"""Files on their way to the disk: every byte in its place and in the digest, whatever the disk can and does."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_builder import hashed_file
from multimodal_builder.hashed_file import ALIGNMENT, HashedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BLOCK = 4 * ALIGNMENT


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hashed_file, "BLOCK_BYTES", BLOCK)
        yield


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    yield opened
    os.close(opened)


def content(seed: int, size: int) -> bytes:
    return bytes((seed + place) % 251 for place in range(size))


def stored(descriptor: int) -> bytes:
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)
    return os.pread(descriptor, 100 * BLOCK, 0)


def write_blocks(descriptor: int, count: int = 10, rest: int = 5) -> bytes:
    data = content(1, count * BLOCK + rest)
    with HashedFile(descriptor) as file:
        file.write(data)
    assert (file.size, file.hexdigest()) == (len(data), hashlib.sha256(data).hexdigest())
    return data


SIZES = st.one_of(
    st.integers(0, BLOCK), st.sampled_from([0, 1, ALIGNMENT - 1, ALIGNMENT, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
)


@given(sizes=st.lists(SIZES, max_size=8), in_place=st.booleans())
def test_what_comes_in_pieces_is_one_file(sizes: list[int], *, in_place: bool) -> None:
    pieces = [content(seed, min(size, BLOCK) if in_place else size) for seed, size in enumerate(sizes)]
    with tempfile.TemporaryFile() as stream:
        with HashedFile(stream.fileno()) as file:
            for piece in pieces:
                if in_place:
                    file.room(len(piece))[:] = piece
                else:
                    changing = bytearray(piece)
                    file.write(memoryview(changing))
                    changing[:] = bytes(len(changing))
        data = b"".join(pieces)
        assert stored(stream.fileno()) == data
        assert (file.size, file.hexdigest()) == (len(data), hashlib.sha256(data).hexdigest())


def test_whole_blocks_go_past_the_page_cache_and_the_rest_does_not(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct: list[bool] = []
    real = os.write

    def noting(number: int, data: memoryview) -> int:
        direct.append(bool(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_DIRECT))
        return real(number, data)

    monkeypatch.setattr(os, "write", noting)
    data = write_blocks(descriptor, count=3)
    assert direct == [True, True, True, False]
    assert stored(descriptor) == data


@pytest.mark.parametrize("refusing", ["the flag", "the write"])
def test_where_the_page_cache_cannot_be_passed_it_is_used(
    descriptor: int, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    write, control = os.write, fcntl.fcntl

    def refusing_write(number: int, data: memoryview) -> int:
        if control(number, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(number, data)

    def refusing_flag(number: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return control(number, command, flags)

    if refusing == "the flag":
        monkeypatch.setattr(fcntl, "fcntl", refusing_flag)
    else:
        monkeypatch.setattr(os, "write", refusing_write)
    begun: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _number, start, size, _advice: begun.extend((start, size)))
    data = write_blocks(descriptor, count=2)
    monkeypatch.undo()
    assert stored(descriptor) == data
    assert begun == [0, BLOCK, BLOCK, BLOCK, 2 * BLOCK, 5]  # the disk does not wait for the end


def test_a_disk_that_takes_less_at_a_time_gets_the_rest(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda number, data: real(number, data[: max(1, len(data) // 3)]))
    data = write_blocks(descriptor, count=2)
    assert stored(descriptor) == data


class Meeting:
    """A digest whose work ends when that of a write does, and the other way round."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=30)
        self.digest = hashlib.sha256()

    def update(self, data: memoryview) -> None:
        if data:
            self.barrier.wait()
        self.digest.update(data)

    def hexdigest(self) -> str:
        return self.digest.hexdigest()


def test_blocks_are_hashed_while_they_are_written(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting, real = Meeting(), os.write

    def write(number: int, data: memoryview) -> int:
        meeting.barrier.wait()
        return real(number, data)

    monkeypatch.setattr(os, "write", write)
    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "sha256", lambda: meeting)
        file = HashedFile(descriptor)
    data = content(1, 5 * BLOCK)
    with file:
        file.write(data)
    assert stored(descriptor) == data
    assert file.hexdigest() == hashlib.sha256(data).hexdigest()


def test_blocks_are_filled_while_others_are_written_and_their_number_is_bounded(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes nothing until a block less than there are has been filled; it would wait for ever for one more."""
    filled, real = threading.Event(), os.write
    made: list[memoryview] = []

    def write(number: int, data: memoryview) -> int:
        assert filled.wait(30)
        return real(number, data)

    memory = hashed_file._memory

    def noting() -> memoryview:
        made.append(memory())
        return made[-1]

    monkeypatch.setattr(hashed_file, "_memory", noting)
    monkeypatch.setattr(os, "write", write)
    data = content(1, 20 * BLOCK)
    with HashedFile(descriptor) as file:
        file.write(memoryview(data)[: hashed_file.BLOCKS * BLOCK])
        filled.set()
        file.write(memoryview(data)[hashed_file.BLOCKS * BLOCK :])
    assert stored(descriptor) == data
    assert len(made) == hashed_file.BLOCKS


def failing(after: int) -> Callable[[int, Any], int]:
    real, count = os.write, itertools.count()

    def write(descriptor: int, data: memoryview) -> int:
        if next(count) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    return write


@pytest.mark.parametrize("after", [0, 1, 5, 9, 10])
def test_an_error_of_the_disk_reaches_who_writes(descriptor: int, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    monkeypatch.setattr(os, "write", failing(after))
    with pytest.raises(OSError, match="No space left"):
        write_blocks(descriptor)


def test_who_ends_in_the_middle_hears_of_its_own_reason_alone(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", failing(2))

    def interrupted() -> None:
        with HashedFile(descriptor) as file:
            file.write(content(1, 3 * BLOCK))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
