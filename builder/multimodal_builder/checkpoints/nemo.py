"""A NeMo 1 checkpoint: configuration, weights and artifacts, from an archive or a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from multimodal_builder.checkpoints.ckpt import CkptSource
from multimodal_builder.checkpoints.config import CONFIG_NAME, ModelConfig, config_error, read_config
from multimodal_builder.checkpoints.errors import COPY_AGAIN, not_found, unreadable
from multimodal_builder.checkpoints.members import DirectoryMembers, Members, clean_name
from multimodal_builder.checkpoints.nemo_tar import TarMembers
from multimodal_builder.checkpoints.torch_dist import DistributedSource

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from multimodal_builder.checkpoints.tensors import TensorSource
    from multimodal_builder.checkpoints.window import Window

CKPT_NAME: Final = "model_weights.ckpt"
DISTRIBUTED_FOLDER: Final = "model_weights"
ARTIFACT: Final = "nemo:"
"""Prefix of configuration values that name a member."""

_SHARDED: Final = re.compile(r"(mp_rank_\d+|tp_rank_\d+_pp_rank_\d+)/model_weights\.ckpt")
_ARTIFACT_LIMIT: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class NemoCheckpoint:
    """An open checkpoint."""

    path: Path
    members: Members
    config: ModelConfig
    tensors: TensorSource

    def artifact(self, key: str, reference: str | None) -> bytes:
        """Read a file that the configuration names.

        Args:
            key: The configuration key, for errors.
            reference: Its value.

        Raises:
            ProductError: the value names no member.
        """
        at = f"{self.members.at}: {CONFIG_NAME}: {key}"
        if reference is None or not reference.startswith(ARTIFACT):
            raise config_error(
                at, f"{reference!r} names no file in the archive", f"use an archive with {ARTIFACT}<file> here"
            )
        return self.members.open(clean_name(reference.removeprefix(ARTIFACT), at)).read(_ARTIFACT_LIMIT)

    def config_bytes(self) -> bytes:
        """Give the configuration as it lies in the checkpoint."""
        return self.members.open(CONFIG_NAME).read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.members.close()


def open_checkpoint(path: Path) -> NemoCheckpoint:
    """Open an archive or an unpacked one; reads configuration and indices only.

    Raises:
        ProductError: there is nothing at the path, or it is no readable and safe checkpoint.
    """
    members = _open_members(path)
    try:
        config = read_config(_open_config(members))
        return NemoCheckpoint(path, members, config, _open_tensors(members))
    except BaseException:
        members.close()
        raise


def _open_members(path: Path) -> Members:
    try:
        return DirectoryMembers(path) if path.is_dir() else TarMembers(path)
    except FileNotFoundError:
        raise not_found(
            str(path), "there is nothing at this path", "correct the path, or copy the checkpoint there"
        ) from None
    except PermissionError as error:
        raise not_found(
            str(path), f"it may not be read: {error.strerror}", "make it readable for group 1000, or for everybody"
        ) from error


def _open_config(members: Members) -> Window:
    if CONFIG_NAME not in members.names():
        raise unreadable(members.at, f"no {CONFIG_NAME} in it: not a NeMo 1 checkpoint, or a truncated one", COPY_AGAIN)
    return members.open(CONFIG_NAME)


def _open_tensors(members: Members) -> TensorSource:
    names = members.names()
    if any(name.startswith(f"{DISTRIBUTED_FOLDER}/") for name in names):
        return DistributedSource(members, DISTRIBUTED_FOLDER)
    if CKPT_NAME in names:
        return CkptSource(members.open(CKPT_NAME))
    if sharded := next(filter(_SHARDED.fullmatch, names), None):
        raise unreadable(
            f"{members.at}: {sharded}",
            "weights of several ranks are not read by this version",
            "merge them with NeMo, or save a distributed checkpoint",
        )
    raise unreadable(members.at, f"no weights: neither {DISTRIBUTED_FOLDER}/ nor {CKPT_NAME} is in it", COPY_AGAIN)
