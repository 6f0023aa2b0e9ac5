from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.restricted_pickle import CONTAINERS, DISTRIBUTED, Record, load
from support.archives import DISTRIBUTED as ARCHIVE
from support.archives import Archive

METADATA = Archive.read(ARCHIVE).members["model_weights/.metadata"]


def failure_of(data: bytes) -> ProductError:
    with pytest.raises(ProductError) as caught:
        load(data, allowed=DISTRIBUTED, at="model.nemo: .metadata")
    return caught.value


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/owned",)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (pickle.dumps(Malicious(), protocol=2), "posix.system"),
        (pickle.dumps(Malicious(), protocol=4), "posix.system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.", "torch.storage._load_from_bytes"),
        (b"ctorch\nload\n(S'x'\ntR.", "torch.load"),
        # A name on the list, reached through another one.
        (b"\x80\x04\x8c\x05torch\x8c\x0fSize.__class__.\x93.", "torch.Size"),
    ],
)
def test_an_unexpected_global_is_refused_by_name_and_nothing_runs(data: bytes, named: str) -> None:
    failure = failure_of(data).failure
    assert failure.at == "model.nemo: .metadata"
    if b"S'" not in data:
        assert named in failure.problem
    assert failure.reason is Reason.CHECKPOINT_UNSAFE


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02I1\nr\xff\xff\xff\x7f.",  # numbers an object 2**31 - 1: the memo would take 16 GiB
        b"\x82\x01.",  # extension registry
        b"(i__main__\nFoo\n.",
        b"\x96" + struct.pack("<Q", 2**40) + b".",  # a bytearray of a tebibyte
    ],
)
def test_opcodes_and_indices_that_no_checkpoint_needs_are_refused(data: bytes) -> None:
    assert failure_of(data).failure.reason in {Reason.CHECKPOINT_UNSAFE, Reason.CHECKPOINT_UNREADABLE}


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_our_error(data: bytes) -> None:
    with suppress(ProductError):
        load(data, allowed=CONTAINERS, at="x")


@given(place=st.integers(0, len(METADATA) - 1), value=st.integers(0, 255))
def test_a_damaged_index_gives_a_value_or_our_error(place: int, value: int) -> None:
    data = bytearray(METADATA)
    data[place] = value
    with suppress(ProductError):
        load(bytes(data), allowed=DISTRIBUTED, at="x")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=20))
def test_plain_data_are_read_as_they_are(value: object) -> None:
    for protocol in (2, 3, 4):
        assert load(pickle.dumps(value, protocol=protocol), allowed={}, at="x") == value


def test_torchs_index_is_read_without_torch() -> None:
    metadata = load(METADATA, allowed=DISTRIBUTED, at="x")
    assert isinstance(metadata, Record)
    tensors = metadata.field("state_dict_metadata")
    embedding = tensors["model.embedding.word_embeddings.weight"]
    assert embedding.field("size") == (512, 96)
    assert embedding.field("properties").state[0] == "float32"


def test_every_allowed_global_is_inert() -> None:
    """Stand-ins are records, opaque values, plain containers or strings; none of them comes from a named module."""
    for (module, name), stand_in in DISTRIBUTED.items():
        if isinstance(stand_in, str):
            continue
        owner = getattr(stand_in, "__module__", "")
        assert owner in {"multimodal_builder.checkpoints.restricted_pickle", "collections", "pathlib"}, (module, name)


def test_the_scan_reads_what_pickle_reads() -> None:
    """The scan stops where unpickling stops: bytes behind the end are looked at by neither."""
    data = pickle.dumps([1]) + pickle.dumps(Malicious())
    assert load(data, allowed={}, at="x") == [1]
    assert [opcode.name for opcode, _, _ in pickletools.genops(io.BytesIO(data))][-1] == "STOP"
