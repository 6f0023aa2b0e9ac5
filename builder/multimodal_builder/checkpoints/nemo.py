"""A NeMo 1 checkpoint: configuration, weights and artifacts, from an archive or a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_builder.checkpoints.checkpoint import Checkpoint, Sources
from multimodal_builder.checkpoints.ckpt import CkptSource
from multimodal_builder.checkpoints.config import CONFIG_NAME, LanguageConfig, ModelConfig, read_config
from multimodal_builder.checkpoints.distributed import open_distributed
from multimodal_builder.checkpoints.errors import COPY_AGAIN, not_found, unreadable
from multimodal_builder.checkpoints.members import DirectoryMembers, Members
from multimodal_builder.checkpoints.names import NamedSource
from multimodal_builder.checkpoints.nemo_tar import TarMembers
from multimodal_builder.checkpoints.ranks import RANK_FILE, RankedSource

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
    from multimodal_builder.checkpoints.config import ConfigT
    from multimodal_builder.checkpoints.hub import Hub
    from multimodal_builder.checkpoints.tensors import TensorSource
    from multimodal_builder.checkpoints.window import Window

CKPT_NAME: Final = "model_weights.ckpt"
DISTRIBUTED_FOLDER: Final = "model_weights"


def open_sources(paths: CheckpointPaths, opened: ExitStack, hub: Hub | None = None) -> Sources:
    """Open all checkpoints of a model.

    Args:
        paths: Where they lie.
        opened: Closes them.
        hub: Has the models that they name and that are not beside them.

    Raises:
        ProductError: there is nothing at a path, or it is no readable and safe checkpoint.
    """
    return Sources(
        visual=opened.enter_context(open_checkpoint(paths.visual, ModelConfig)),
        llm=None if paths.llm is None else opened.enter_context(open_checkpoint(paths.llm, LanguageConfig)),
        lora=None if paths.lora is None else opened.enter_context(open_checkpoint(paths.lora, LanguageConfig)),
        hub=hub,
    )


def open_checkpoint(path: Path, model: type[ConfigT]) -> Checkpoint[ConfigT]:
    """Open an archive or an unpacked one; reads configuration and indices only.

    Args:
        path: Archive or folder.
        model: What has to be in the configuration.

    Raises:
        ProductError: there is nothing at the path, or it is no readable and safe checkpoint.
    """
    members = _open_members(path)
    try:
        config = read_config(_open_config(members), model)
        language = config if isinstance(config, LanguageConfig) else None
        return Checkpoint(path, members, CONFIG_NAME, config, _open_tensors(members, language))
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


def _open_tensors(members: Members, config: LanguageConfig | None) -> TensorSource:
    """Open the weights; without a language model's configuration, ranks cannot be merged."""
    return NamedSource(_open_stored(members, config), members.at)


def _open_stored(members: Members, config: LanguageConfig | None) -> TensorSource:
    names = members.names()
    if any(name.startswith(f"{DISTRIBUTED_FOLDER}/") for name in names):
        return open_distributed(members, DISTRIBUTED_FOLDER)
    if CKPT_NAME in names:
        return CkptSource(members.open(CKPT_NAME))
    if config is not None and any(map(RANK_FILE.fullmatch, names)):
        return RankedSource(members, config)
    raise unreadable(members.at, f"no weights: neither {DISTRIBUTED_FOLDER}/ nor {CKPT_NAME} is in it", COPY_AGAIN)
