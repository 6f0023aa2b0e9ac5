"""Pickles as data: a short list of names is known, each stands for an inert record, anything else is refused.

No class or function that a pickle names is ever imported or called. What torch, its distributed checkpoints and
Megatron-core write is rebuilt from stand-ins, so that reading a checkpoint runs nothing but this package.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import TYPE_CHECKING, Any, Final

from multimodal_builder.checkpoints.errors import unreadable, unsafe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OPCODES: Final = frozenset({
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
})  # fmt: skip
"""What writers of checkpoints use. Left out are extensions, older ways to make instances, sets, and shared buffers."""

MAX_NESTING: Final = 32
"""Of tuples in tuples. One that holds another twice, and so on, has few bytes, and no end when it is a key."""


class Record:
    """Stands for an instance of a class that is not there: its state; its constructor's arguments are dropped."""

    state: object = None
    """Of the class too: a pickle makes an instance without its constructor, and gives no state where there is none."""

    def __init__(self, *_args: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        """Keep the state as it is."""
        self.state = state

    def field(self, name: str) -> Any:  # noqa: ANN401 (whatever the pickle holds; the reader checks it)
        """Give a field of a class whose state is a dictionary, or None."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class Opaque:
    """Stands for a value that no reader needs; all of its content is dropped."""

    def __init__(self, *_args: object) -> None: ...

    def __setstate__(self, _state: object) -> None:
        """Drop the state."""


class _Mapping(dict[object, object]):
    """Stands for `OrderedDict`; attributes that a module's state dictionary carries are dropped."""

    def __setstate__(self, _state: object) -> None:
        """Drop the state."""


def _size(parts: object = ()) -> tuple[object, ...]:
    """Stand for `torch.Size`."""
    if not isinstance(parts, (tuple, list)):
        raise pickle.UnpicklingError("torch.Size of something else than a sequence")
    return tuple(parts)


def _records(module: str, *names: str) -> dict[tuple[str, str], type[Record]]:
    return {(module, name): type(name, (Record,), {}) for name in names}


def _opaques(module: str, *names: str) -> dict[tuple[str, str], type[Opaque]]:
    return {(module, name): type(name, (Opaque,), {}) for name in names}


_METADATA: Final = "torch.distributed.checkpoint.metadata"
_FILESYSTEM: Final = "torch.distributed.checkpoint.filesystem"
_MCORE: Final = "megatron.core.dist_checkpointing.strategies.torch"

CONTAINERS: Final[Mapping[tuple[str, str], object]] = {
    ("collections", "OrderedDict"): _Mapping,
    # Extra states of Transformer Engine: a buffer, and how protocol 2 writes its bytes.
    **_opaques("_io", "BytesIO"),
    **_opaques("_codecs", "encode"),
    **_opaques("__builtin__", "bytes"),  # how it writes none
}

DISTRIBUTED: Final[Mapping[tuple[str, str], object]] = {
    **CONTAINERS,
    **_records(_METADATA, "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
    **_records(_METADATA, "TensorProperties", "MetadataIndex"),
    **_opaques(_METADATA, "StorageMeta", "_MEM_FORMAT_ENCODING"),
    **_records(_FILESYSTEM, "_StorageInfo"),
    # Torch before 2.3 kept the properties here.
    **_records("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
    **_opaques("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
    # Megatron-core's metadata has one field more, and some of its versions keep the plan of the save in it.
    **_records(_MCORE, "MCoreMetadata"),
    **_opaques(_MCORE, "MCoreSavePlan"),
    **_opaques("torch.distributed.checkpoint.planner", "SavePlan", "WriteItem", "WriteItemType", "TensorWriteData"),
    **_opaques(_FILESYSTEM, "_StoragePrefix"),
    # The folder that was written to.
    **_opaques("pathlib", "PosixPath"),
    **_opaques("pathlib._local", "PosixPath"),
    ("torch", "Size"): _size,
    **_opaques("torch.serialization", "_get_layout"),
    **{("torch", name): name for name in ("float64", "float32", "float16", "bfloat16", "bool")},
    **{("torch", name): name for name in ("int64", "int32", "int16", "int8", "uint8")},
}  # fmt: skip
"""Names in `.metadata` of torch 2.1 to 2.11, and of Megatron-core 0.9 to 0.15."""


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, data: bytes, allowed: Mapping[tuple[str, str], object], persistent: Callable[[object], object], at: str
    ) -> None:
        super().__init__(io.BytesIO(data))
        self._allowed = allowed
        self._persistent = persistent
        self._at = at

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 (pickle's own signature)
        """Give the stand-in of a name on the list."""
        try:
            return self._allowed[module, name]
        except KeyError:
            raise unsafe(
                self._at, f"the pickle names {module}.{name}, which is not on the list of harmless names"
            ) from None

    def persistent_load(self, pid: object) -> object:
        """Give what stands for an object that is kept outside the pickle."""
        return self._persistent(pid)


def _no_persistent(_pid: object) -> object:
    raise pickle.UnpicklingError("it refers to storages, and there are none beside it")


def load(
    data: bytes,
    *,
    allowed: Mapping[tuple[str, str], object],
    at: str,
    persistent: Callable[[object], object] = _no_persistent,
) -> object:
    """Read a pickle.

    Args:
        data: All of it.
        allowed: Stand-ins by module and name.
        at: What to call it in an error.
        persistent: Makes the stand-in of a persistent id, which torch uses for storages.

    Raises:
        ProductError: it is damaged, or names something that is not allowed.
    """
    try:
        _scan(data, at)
        return _Unpickler(data, allowed, persistent, at).load()
    except (
        pickle.UnpicklingError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        EOFError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        raise unreadable(at, f"the pickle is damaged: {type(error).__name__}: {error}") from error


_GETS: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUTS: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_TUPLES: Final = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})


def _scan(data: bytes, at: str) -> None:
    """Walk through the pickle as the unpickler will, with no more than how deep each object's tuples are nested.

    Refused are opcodes that no checkpoint needs, memo indices that would make a small pickle allocate gigabytes, and
    tuples whose hash takes for ever.
    """
    depths: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name not in OPCODES:
            raise unsafe(at, f"the pickle uses the opcode {name}, which no checkpoint needs")
        if name == "MARK":
            marks.append(len(depths))
        elif name in _GETS:
            depths.append(memo[int(argument or 0)])
        elif name in _PUTS:
            index = int(argument or 0)
            if index > len(data):
                raise unsafe(at, f"the pickle numbers an object {index}, more than it has bytes")
            memo[index] = depths[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = depths[-1]
        else:
            start = marks.pop() if pickletools.markobject in opcode.stack_before else len(depths) - _POPS[name]
            deepest = max(depths[start:], default=0) + (name in _TUPLES)
            del depths[start:]
            depths += [deepest] * len(opcode.stack_after)
            if deepest > MAX_NESTING:
                raise unsafe(at, f"the pickle nests tuples more than {MAX_NESTING} deep")


_POPS: Final = {opcode.name: len(opcode.stack_before) for opcode in pickletools.opcodes}
