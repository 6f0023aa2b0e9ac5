from __future__ import annotations

import gzip
import tarfile
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints import nemo_tar
from multimodal_builder.checkpoints.nemo_tar import TarMembers
from support.archives import DISTRIBUTED, Archive, link

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = DISTRIBUTED.read_bytes()
END = len(WHOLE.rstrip(b"\0"))  # behind it are only zeros: the last member's padding and the end mark


def reason_of(path: Path) -> Reason:
    with pytest.raises(ProductError) as caught:
        TarMembers(path)
    assert path.name in caught.value.failure.at
    return caught.value.failure.reason


def test_members_are_read_where_they_lie(tmp_path: Path, distributed: Archive) -> None:
    members = TarMembers(distributed.write(tmp_path))
    assert set(members.names()) == set(distributed.members)
    for name, content in distributed.members.items():
        assert members.open(name).read() == content
    members.close()


def test_a_gzip_archive_is_the_same(tmp_path: Path, distributed: Archive) -> None:
    path = tmp_path / "old.nemo"
    path.write_bytes(gzip.compress(distributed.to_bytes()))
    members = TarMembers(path)
    assert {name: members.open(name).read() for name in members.names()} == distributed.members
    members.close()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, END))
@example(cut=0)
@example(cut=512)
@example(cut=END)
def test_a_truncated_archive_is_refused_wherever_it_is_cut(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.nemo"
    path.write_bytes(WHOLE[:cut])
    assert reason_of(path) is Reason.CHECKPOINT_UNREADABLE


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_headers_give_our_error_or_the_same_safe_index(tmp_path: Path, places: list[tuple[int, int]]) -> None:
    damaged = bytearray(WHOLE)
    for place, value in places:
        damaged[place] = value
    path = tmp_path / "damaged.nemo"
    path.write_bytes(damaged)
    with suppress(ProductError):
        members = TarMembers(path)
        for name in members.names():
            assert not name.startswith("/")
            assert ".." not in name.split("/")
            assert members.open(name).size <= len(damaged)
        members.close()


def test_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.nemo"
    path.write_bytes(b"PK\3\4 a zip, perhaps" * 100)
    assert reason_of(path) is Reason.CHECKPOINT_UNREADABLE


@pytest.mark.parametrize(
    "header",
    [
        tarfile.TarInfo("../outside"),
        tarfile.TarInfo("model_weights/../../outside"),
        tarfile.TarInfo("/etc/cron.d/outside"),
        link("./model_weights.ckpt", tarfile.SYMTYPE),
        link("./hard", tarfile.LNKTYPE, "./model_config.yaml"),
        link("./device", tarfile.CHRTYPE, ""),
        link("./pipe", tarfile.FIFOTYPE, ""),
        tarfile.TarInfo("./model_config.yaml"),
    ],
    ids=["..", "inner ..", "absolute", "symlink", "hard link", "device", "pipe", "second of its name"],
)
def test_members_that_are_more_than_data_are_refused(
    tmp_path: Path, distributed: Archive, header: tarfile.TarInfo
) -> None:
    distributed.extra.append(header)
    assert reason_of(distributed.write(tmp_path)) is Reason.CHECKPOINT_UNSAFE


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nemo_tar, "_COPY", 2**16)
    path = tmp_path / "bomb.nemo"
    path.write_bytes(gzip.compress(bytes(10 * 2**20)))
    assert reason_of(path) is Reason.CHECKPOINT_UNSAFE


def test_a_truncated_gzip_is_refused(tmp_path: Path, distributed: Archive) -> None:
    path = tmp_path / "old.nemo"
    path.write_bytes(gzip.compress(distributed.to_bytes())[:-20])
    assert reason_of(path) is Reason.CHECKPOINT_UNREADABLE


def test_a_large_member_is_refused_where_a_small_one_is_expected(tmp_path: Path, distributed: Archive) -> None:
    members = TarMembers(distributed.write(tmp_path))
    with pytest.raises(ProductError) as caught:
        members.open("model_config.yaml").read(limit=100)
    assert caught.value.failure.reason is Reason.CHECKPOINT_UNSAFE
    members.close()
