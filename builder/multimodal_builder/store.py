"""The engine store: whole engines under their keys, work in progress apart from them, one lock per key.

<key>/manifest.json, <key>/model/…     an engine; it appears by one rename and is never changed
.partial/<key>/                        a build in progress, with one marker per finished stage
.hub/<key>/                             what that build fetches from the Hugging Face Hub
.locks/<key>                           held by the build of that key
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from pydantic import BaseModel, ValidationError

from multimodal_api.engine import ENGINE_FORMAT, KEY_LENGTH, MANIFEST_NAME, EngineKey, Manifest
from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.files import sync_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from multimodal_api.build import Stage

PARTIAL: Final = ".partial"
LOCKS: Final = ".locks"
HUB: Final = ".hub"
LOCK_SECONDS: Final = 120.0
"""How long to wait for a build of the same key that is ending."""
_POLL_SECONDS: Final = 0.1
_KEY: Final = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}")

_Record = TypeVar("_Record", bound=BaseModel)


class Store:
    """A folder that holds engines."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def engine(self, key: EngineKey) -> Path:
        """Give the folder of an engine."""
        return self.root / key

    def find(self, key: EngineKey) -> Manifest | None:
        """Look for a whole engine: a manifest of this key and format, and all its files in their sizes.

        Raises:
            ProductError: there is a folder under the key that is no whole engine.
        """
        folder = self.engine(key)
        if not folder.is_dir():
            return None
        at = f"engine {key}"
        try:
            manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
        except (OSError, ValidationError) as error:
            raise _corrupt(at, f"its {MANIFEST_NAME} cannot be read: {type(error).__name__}") from error
        if manifest.key != key or manifest.engine_format != ENGINE_FORMAT:
            raise _corrupt(at, f"its manifest is of key {manifest.key} and format {manifest.engine_format}")
        for file in manifest.files:
            try:
                size = (folder / file.path).stat().st_size
            except OSError as error:
                raise _corrupt(at, f"{file.path} cannot be read: {error.strerror}") from error
            if size != file.size:
                raise _corrupt(at, f"{file.path} has {size} bytes, not {file.size}")
        return manifest

    @contextmanager
    def lock(self, key: EngineKey) -> Iterator[None]:
        """Be the only build of a key; the kernel gives the lock back when the process ends in whatever way.

        Raises:
            ProductError: another build holds it for longer than `LOCK_SECONDS`.
        """
        path = self.root / LOCKS / key
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + LOCK_SECONDS
        with path.open("ab") as file:
            while not _try_lock(file.fileno()):
                if time.monotonic() > deadline:
                    raise ProductError(
                        Reason.DEADLINE_EXCEEDED,
                        at=f"engine store: {LOCKS}/{key}",
                        problem=f"another build of this engine has been running for {LOCK_SECONDS:.0f} s",
                        remedy="wait for it to end, or delete its Job",
                    )
                time.sleep(_POLL_SECONDS)
            yield

    def workspace(self, key: EngineKey, identity: BaseModel) -> Workspace:
        """Open the work in progress of a key; what another input left behind is removed."""
        return Workspace(self.root / PARTIAL / key, identity)

    def publish(self, key: EngineKey, work: Workspace) -> None:
        """Make a finished engine visible, in one rename."""
        target = self.engine(key)
        if target.exists():
            # Not a whole engine, else there would have been no build.
            target.rename(work.root / "replaced")
        work.engine.rename(target)
        sync_folder(self.root)

    def downloads(self, key: EngineKey) -> Path:
        """Give the folder for what the build of a key fetches; it outlives an attempt and ends with the work."""
        return self.root / HUB / key

    def discard_work(self, key: EngineKey) -> None:
        """Remove the work in progress of a key."""
        for area in (PARTIAL, HUB):
            shutil.rmtree(self.root / area / key, ignore_errors=True)

    def prune(self, keep: Collection[EngineKey]) -> list[EngineKey]:
        """Remove all engines but these, and the work in progress that nobody does; give the keys of the engines."""
        removed: list[EngineKey] = []
        for folder in sorted(self.root.iterdir()):
            if _KEY.fullmatch(folder.name) and folder.is_dir() and folder.name not in keep:
                grave = self.root / PARTIAL / folder.name / "removed"
                grave.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(grave)  # a reader sees a whole engine or none
                removed.append(folder.name)
        self._remove_abandoned(keep)
        return removed

    def _remove_abandoned(self, keep: Collection[EngineKey]) -> None:
        for folder in sorted(folder for area in (PARTIAL, HUB) for folder in (self.root / area).glob("*")):
            lock = self.root / LOCKS / folder.name
            if folder.name in keep or not _KEY.fullmatch(folder.name):
                continue
            lock.parent.mkdir(parents=True, exist_ok=True)
            with lock.open("ab") as file:
                if _try_lock(file.fileno()):
                    shutil.rmtree(folder)


class Workspace:
    """One build in progress."""

    def __init__(self, root: Path, identity: BaseModel) -> None:
        self.root = root
        self.engine = root / "engine"
        """Becomes the engine."""
        name = "identity"
        if self._read(name, type(identity)) != identity:
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
            self._write(name, identity)

    def finished(self, stage: Stage, result: type[_Record]) -> _Record | None:
        """Give the result of a stage that an earlier attempt finished."""
        return self._read(stage.value, result)

    def finish(self, stage: Stage, result: BaseModel) -> None:
        """Leave the marker of a finished stage; everything the stage wrote is on the disk by now."""
        self._write(stage.value, result)

    def clear_engine(self) -> None:
        """Remove what an interrupted stage wrote."""
        shutil.rmtree(self.engine, ignore_errors=True)
        self.engine.mkdir()

    def _read(self, name: str, model: type[_Record]) -> _Record | None:
        try:
            return model.model_validate_json((self.root / f"{name}.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def _write(self, name: str, record: BaseModel) -> None:
        path = self.root / f"{name}.json"
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(record.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(self.root)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _corrupt(at: str, problem: str) -> ProductError:
    return ProductError(
        Reason.ENGINE_CORRUPT,
        at=at,
        problem=problem,
        remedy="delete its folder in the store: the operator builds it again",
    )
