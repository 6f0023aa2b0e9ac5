"""NeMo's checkpoints, of version 1 or 2: configuration, weights and artifacts, from an archive or a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from multimodal_builder.checkpoints import nemo2
from multimodal_builder.checkpoints.checkpoint import Checkpoint, Sources
from multimodal_builder.checkpoints.ckpt import CkptSource
from multimodal_builder.checkpoints.config import (
    CONFIG_NAME,
    LanguageConfig,
    ModelConfig,
    ParallelConfig,
    check_config,
)
from multimodal_builder.checkpoints.distributed import open_distributed
from multimodal_builder.checkpoints.errors import not_found, unreadable
from multimodal_builder.checkpoints.members import DirectoryMembers, Members
from multimodal_builder.checkpoints.names import NamedSource
from multimodal_builder.checkpoints.nemo_tar import TarMembers
from multimodal_builder.checkpoints.peft import is_peft_folder, open_peft
from multimodal_builder.checkpoints.ranks import RANK_FILE, RankedSource
from multimodal_builder.checkpoints.speech_config import SpeechConfig
from multimodal_builder.checkpoints.yaml_document import read_yaml
from multimodal_builder.language_folder import is_language_folder, open_language_folder

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from pydantic import BaseModel

    from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
    from multimodal_builder.checkpoints.config import ConfigT
    from multimodal_builder.checkpoints.hub import Hub
    from multimodal_builder.checkpoints.peft import PeftFolder
    from multimodal_builder.checkpoints.tensors import TensorSource

CKPT_NAME: Final = "model_weights.ckpt"
DISTRIBUTED_FOLDER: Final = "model_weights"


def open_sources(paths: CheckpointPaths, opened: ExitStack, hub: Hub | None = None) -> Sources[ModelConfig]:
    """Open all checkpoints of a model that sees.

    Args:
        paths: Where they lie.
        opened: Closes them.
        hub: Has the models that they name and that are not beside them.

    Raises:
        ProductError: there is nothing at a path, or it is no readable and safe checkpoint.
    """
    visual = opened.enter_context(open_checkpoint(paths.visual, ModelConfig))
    language = visual if paths.llm is None else opened.enter_context(_open_language(paths.llm))
    return Sources(visual, language, *_open_lora(paths.lora, opened), hub)


def open_speech(paths: CheckpointPaths, opened: ExitStack) -> Sources[SpeechConfig]:
    """Open all checkpoints of a model that hears.

    An archive that holds the whole model is opened twice, and read for its speech and for its language model.

    Args:
        paths: Where they lie.
        opened: Closes them.

    Raises:
        ProductError: there is nothing at a path, or it is no readable and safe checkpoint.
    """
    visual = opened.enter_context(open_checkpoint(paths.visual, SpeechConfig))
    if paths.llm is None and visual.config.alone:
        raise not_found(
            visual.at,
            "it holds the speech encoder alone",
            "give the checkpoint of its language model too: spec.model.llmCheckpoint, or --llm",
        )
    language = opened.enter_context(_open_language(paths.llm or paths.visual))
    return Sources(visual, language, *_open_lora(paths.lora, opened))


def _open_language(path: Path) -> Checkpoint[LanguageConfig]:
    return open_language_folder(path) if is_language_folder(path) else open_checkpoint(path, LanguageConfig)


def _open_lora(path: Path | None, opened: ExitStack) -> tuple[Checkpoint[LanguageConfig] | None, PeftFolder | None]:
    """Open an adapter, of NeMo's or of peft's."""
    if path is None:
        return None, None
    if is_peft_folder(path):
        return None, open_peft(path, opened)
    return opened.enter_context(open_checkpoint(path, LanguageConfig)), None


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
        name, document = _read_settings(members)
        at = f"{members.at}: {name}"
        config = check_config(document, model, at)
        whole = isinstance(config, SpeechConfig) and not config.alone
        language = check_config(document, LanguageConfig, at) if whole else config
        return Checkpoint(path, members, name, config, NamedSource(_open_stored(members, language), members.at))
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


def _read_settings(members: Members) -> tuple[str, dict[str, Any]]:
    """Give the configuration's file, and NeMo 1's `model` section, which NeMo 2's configuration is translated into."""
    names = members.names()
    if CONFIG_NAME in names:
        return CONFIG_NAME, read_yaml(members.open(CONFIG_NAME))
    if nemo2.CONTEXT_NAME in names:
        member = members.open(nemo2.CONTEXT_NAME)
        return nemo2.CONTEXT_NAME, nemo2.translate(read_yaml(member), names, member.at)
    raise unreadable(
        members.at,
        f"neither {CONFIG_NAME} (NeMo 1) nor {nemo2.CONTEXT_NAME} (NeMo 2) is in it: no checkpoint, or a truncated one",
    )


def _open_stored(members: Members, config: BaseModel) -> TensorSource:
    """Open the weights; without a configuration that says how it was trained, ranks cannot be merged."""
    names = members.names()
    for folder in (DISTRIBUTED_FOLDER, nemo2.WEIGHTS_FOLDER):
        if any(name.startswith(f"{folder}/") for name in names):
            return open_distributed(members, folder)
    if CKPT_NAME in names:
        return CkptSource(members.open(CKPT_NAME))
    if isinstance(config, ParallelConfig) and any(map(RANK_FILE.fullmatch, names)):
        return RankedSource(members, config)
    folders = f"{DISTRIBUTED_FOLDER}/, {nemo2.WEIGHTS_FOLDER}/"
    raise unreadable(members.at, f"no weights: neither {folders} nor {CKPT_NAME} is in it")
