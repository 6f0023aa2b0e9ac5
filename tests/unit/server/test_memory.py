"""The memory that Triton may take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from multimodal_server import memory

ROOM = 2**26
TRY = "import sys; input(); bytearray(int(sys.argv[1])); print('taken')"

ALLOCATE = """
import ctypes, threading
{first}
libc, together = ctypes.CDLL(None), threading.Barrier(17)
def work():
    kept = bytearray(10_000)
    together.wait(60)
    together.wait(60)
for _ in range(16):
    threading.Thread(target=work).start()
together.wait(60)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
together.wait(60)
"""
"""Prints what glibc knows of its arenas."""


@pytest.mark.parametrize(
    ("first", "few"), [("from multimodal_server import memory; memory.share_arenas()", True), ("", False)]
)
def test_many_threads_share_few_arenas(first: str, few: bool) -> None:  # noqa: FBT001
    said = subprocess.check_output([sys.executable, "-c", ALLOCATE.format(first=first)], text=True, timeout=60)
    assert (said.count("<heap nr=") <= memory.ARENAS) is few


@pytest.mark.parametrize(("size", "taken"), [(ROOM // 2, True), (2 * ROOM, False)])
def test_a_process_is_refused_what_is_beyond_its_room(size: int, taken: bool) -> None:  # noqa: FBT001
    with subprocess.Popen(
        [sys.executable, "-c", TRY, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        memory.bound(process.pid, ROOM)
        said, complaint = process.communicate("\n", timeout=60)
    assert ("taken" in said) is taken
    assert ("MemoryError" in complaint) is not taken


def test_a_process_that_has_ended_is_nothing_to_bound() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(60)
    memory.bound(process.pid, ROOM)


@pytest.mark.parametrize("name", memory.FILES)
@pytest.mark.parametrize(
    ("said", "room"), [("2147483648\n", 2**30), ("9223372036854771712\n", 2**32), ("max\n", 2**32)]
)
def test_half_of_the_container_s_memory_is_the_most(tmp_path: Path, name: str, said: str, room: int) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(said)
    assert memory.room(tmp_path) == room


def test_a_machine_without_control_groups_has_the_usual_room(tmp_path: Path) -> None:
    assert memory.room(tmp_path) == memory.ROOM_BYTES
