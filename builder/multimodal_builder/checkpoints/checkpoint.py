"""What every form on disk becomes: configuration, tensors under one set of names, and files that the first names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from pydantic import BaseModel

from multimodal_api.base import Model
from multimodal_builder.checkpoints.config import LanguageConfig, TunedConfig, config_error
from multimodal_builder.checkpoints.hub import DEFAULT_REVISION, is_repository
from multimodal_builder.checkpoints.members import clean_name

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from multimodal_builder.checkpoints.hub import Hub
    from multimodal_builder.checkpoints.members import Members
    from multimodal_builder.checkpoints.peft import PeftFolder
    from multimodal_builder.checkpoints.tensors import TensorSource
    from multimodal_builder.mappings.language_model import LanguageModel

ARTIFACT: Final = "nemo:"
"""Prefix of configuration values that name a member."""
_ARTIFACT_LIMIT: Final = 64 * 2**20

_Config_co = TypeVar("_Config_co", bound=BaseModel, covariant=True)
_Media_co = TypeVar("_Media_co", bound=TunedConfig, covariant=True)


@dataclass(frozen=True, slots=True)
class Checkpoint(Generic[_Config_co]):
    """An open checkpoint, whatever its form."""

    path: Path
    members: Members
    config_name: str
    """Member that the configuration was read from."""
    config: _Config_co
    tensors: TensorSource
    """Names are NeMo 1's with Megatron-core, one entry per layer and per expert; or those of `ready`."""
    ready: LanguageModel | None = None
    """Of a folder of transformers, which has the names already that a language model gets."""

    @property
    def at(self) -> str:
        """What to call it in an error."""
        return self.members.at

    @property
    def config_at(self) -> str:
        """What to call its configuration in an error."""
        return f"{self.at}: {self.config_name}"

    @property
    def settings(self) -> bytes:
        """The configuration as it lies in the checkpoint."""
        return self.members.open(self.config_name).read()

    def artifact(self, key: str, reference: str | None) -> bytes:
        """Read a file that the configuration names.

        Args:
            key: The configuration key, for errors.
            reference: Its value.

        Raises:
            ProductError: the value names no member.
        """
        at = f"{self.config_at}: {key}"
        if reference is None or not reference.startswith(ARTIFACT):
            raise config_error(
                at, f"{reference!r} names no file in the archive", f"use an archive with {ARTIFACT}<file> here"
            )
        return self.members.open(clean_name(reference.removeprefix(ARTIFACT), at)).read(_ARTIFACT_LIMIT)

    def close(self) -> None:
        """Close all files."""
        self.members.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class HubReference(Model):
    """A repository of the Hugging Face Hub."""

    repository: str
    """Owner and name."""
    revision: str

    def __str__(self) -> str:
        """Write it as `parse_location` reads it."""
        return f"{HUB_SCHEME}{self.repository}@{self.revision}"


Location = Path | HubReference
HUB_SCHEME: Final = "hf:"


def parse_location(text: str) -> Location:
    """Read a command-line value: a path, or `hf:OWNER/NAME[@REVISION]`.

    Raises:
        ValueError: the scheme is followed by something else.
    """
    if not text.startswith(HUB_SCHEME):
        return Path(text)
    repository, _, revision = text.removeprefix(HUB_SCHEME).partition("@")
    if not is_repository(repository):
        raise ValueError(f"{text!r} is not hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    return HubReference(repository=repository, revision=revision or DEFAULT_REVISION)


class CheckpointPaths(Model):
    """Where the checkpoints of one model lie."""

    visual: Path
    llm: Path | None = None
    """Of the language model; None: it lies in the visual checkpoint."""
    lora: Path | None = None
    """Of an adapter that is merged into the language model."""


class CheckpointLocations(Model):
    """Where the checkpoints of one model lie, or where they are fetched from."""

    visual: Location
    llm: Location | None = None
    """Of the language model; None: it lies in the visual checkpoint."""
    lora: Location | None = None
    """Of an adapter that is merged into the language model."""

    def given(self) -> tuple[Location, ...]:
        """List them."""
        return tuple(place for place in (self.visual, self.llm, self.lora) if place is not None)

    @property
    def remote(self) -> bool:
        """Whether anything must be fetched."""
        return any(isinstance(place, HubReference) for place in self.given())

    def fetch(self, hub: Hub) -> CheckpointPaths:
        """Fetch what does not lie on a volume.

        Raises:
            ProductError: a repository cannot be had.
        """

        def path(role: str, place: Location | None) -> Path | None:
            if not isinstance(place, HubReference):
                return place
            return hub.fetch(place.repository, place.revision, at=f"spec.model.{role}Checkpoint.hf")

        visual = path("visual", self.visual)
        assert visual is not None  # noqa: S101 -- it was given
        return CheckpointPaths(visual=visual, llm=path("llm", self.llm), lora=path("lora", self.lora))


@dataclass(frozen=True, slots=True)
class Sources(Generic[_Media_co]):
    """The open checkpoints of one model."""

    visual: Checkpoint[_Media_co]
    """Of the media encoder."""
    language: Checkpoint[LanguageConfig]
    """Of the language model; it may be the visual one."""
    lora: Checkpoint[LanguageConfig] | None = None
    peft: PeftFolder | None = None
    """An adapter of peft's, in the place of `lora`."""
    hub: Hub | None = None
    """Has the towers that checkpoints name by their repository; None: they must lie on the volume."""

    @property
    def apart(self) -> bool:
        """Whether the language model has a checkpoint of its own."""
        return self.language.path != self.visual.path

    def given(self) -> tuple[Checkpoint[TunedConfig], ...]:
        """List them, each once."""
        language = (self.language,) if self.apart else ()
        lora = () if self.lora is None else (self.lora,)
        return (self.visual, *language, *lora)

    def with_language(self, tensors: TensorSource) -> Sources[_Media_co]:
        """Give the same sources with other tensors in the checkpoint of the language model."""
        return replace(self, language=replace(self.language, tensors=tensors))

    def settings(self) -> tuple[bytes, ...]:
        """Give the configurations, for the digest."""
        peft = () if self.peft is None else (self.peft.settings,)
        return (*(source.settings for source in self.given()), *peft)
