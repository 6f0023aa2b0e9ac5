"""Models of the Hugging Face Hub, for checkpoints that name one which does not lie on a volume.

`huggingface_hub` does the work: it reads `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE`, resumes a download that broke
off, and writes a file under its name only when it is whole.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, TypeVar

from multimodal_api.errors import ProductError
from multimodal_api.logs import FIELDS
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.errors import not_found
from multimodal_builder.checkpoints.members import clean_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

DEFAULT_REVISION: Final = "main"
ATTEMPTS: Final = 4
"""Of each call to the Hub that fails for want of an answer."""
PAUSE_SECONDS: Final = 2.0
"""Before the second attempt; doubled before each further one."""
ROOM: Final = 64 * 2**20
"""Bytes that are left free."""

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_SMALL: Final = frozenset({".json", ".model", ".txt", ".tiktoken", ".jinja"})
"""Endings of configurations and tokenizers. Code (`.py`) is never fetched."""
_WEIGHTS: Final = (".safetensors", ".nemo", ".bin")
"""Endings of weights, best first: a repository often holds the same weights twice."""
_NO_ACCESS: Final = (
    "correct the name and the revision; a private or gated repository needs spec.model.hfTokenSecret (HF_TOKEN)"
)
_NO_HUB: Final = (
    "let the build's pods reach the Hub (or HF_ENDPOINT), or copy the model to the volume and name it there"
)

_Result = TypeVar("_Result")


class Hub:
    """Fetches repositories into a folder, one below the other as they are called: `OWNER/NAME/REVISION`."""

    def __init__(self, folder: Path, *, endpoint: str | None = None) -> None:
        """Say where downloads go.

        Args:
            folder: Made when something is fetched.
            endpoint: Address of the Hub; None takes `HF_ENDPOINT`, or the public one.
        """
        self._folder = folder
        self._endpoint = endpoint

    def fetch(self, repository: str, revision: str = DEFAULT_REVISION, *, at: str) -> Path:
        """Fetch configurations, tokenizer and one form of the weights.

        Args:
            repository: Owner and name.
            revision: Branch, tag or commit.
            at: What names the repository, for errors.

        Returns:
            The folder that holds the files; or the `.nemo` archive in it, when it holds one and no `config.json`.

        Raises:
            ProductError: there is no such repository, it needs a token, it does not answer, or the disk is too small.
        """
        from huggingface_hub import HfApi  # noqa: PLC0415 (half a second, for the few builds that need it)

        # The library itself looks at HF_ENDPOINT only while it is imported.
        endpoint = self._endpoint or os.environ.get("HF_ENDPOINT")
        api = HfApi(endpoint=endpoint, library_name="multimodal-operator")
        place = f"{repository}@{revision}"
        info = _ask(lambda: api.model_info(repository, revision=revision, files_metadata=True), place, at=at)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        chosen = choose(sizes)
        if not chosen:
            raise not_found(f"{at}: {place}", "the repository holds no model", "name one that does")
        folder = self._folder / repository / revision.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        self._require_room(folder, sum(sizes[name] for name in chosen if not (folder / name).is_file()), place)
        for name in chosen:
            self._download(api, repository, info.sha or revision, name, folder, at=at)
            log.info("fetched", extra={FIELDS: {"repository": place, "file": name, "bytes": sizes[name]}})
        archives = [name for name in chosen if name.endswith(".nemo")]
        return folder / archives[0] if len(archives) == 1 and "config.json" not in chosen else folder

    @staticmethod
    def _download(api: HfApi, repository: str, commit: str, name: str, folder: Path, *, at: str) -> None:
        clean_name(name, f"{at}: {repository}")

        def download() -> str:
            return api.hf_hub_download(repository, name, revision=commit, local_dir=folder)

        _ask(download, f"{repository}/{name}", at=at)

    @staticmethod
    def _require_room(folder: Path, needed: int, place: str) -> None:
        free = shutil.disk_usage(folder).free
        if free < needed + ROOM:
            raise ProductError(
                Reason.DISK_FULL,
                at=f"engine store: {place}",
                problem=f"{free} bytes are free, the download takes {needed + ROOM}",
                remedy="delete engines that are not used, or give spec.engineStore a larger volume",
            )


def is_repository(name: str) -> bool:
    """Tell whether a configuration value reads like `OWNER/NAME`, and not like a path."""
    return _REPOSITORY.fullmatch(name) is not None and ".." not in name


def choose(names: Iterable[str]) -> list[str]:
    """Choose what to fetch: small files, and the best form of the weights in each folder, smallest names first."""
    names = sorted(names)
    best: dict[PurePosixPath, str] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix in _WEIGHTS:
            known = best.setdefault(path.parent, path.suffix)
            best[path.parent] = min(known, path.suffix, key=_WEIGHTS.index)

    def wanted(name: str) -> bool:
        path = PurePosixPath(name)
        return path.suffix in _SMALL or best.get(path.parent) == path.suffix

    return [name for name in names if wanted(name)] if best else []


def _ask(call: Callable[[], _Result], place: str, *, at: str) -> _Result:
    """Call the Hub, and call again when it gives no answer.

    Raises:
        ProductError: its answer is a refusal, or there is none after all attempts.
    """
    from huggingface_hub import errors  # noqa: PLC0415 (as above)

    silence: Exception | None = None
    for attempt in range(ATTEMPTS):
        if silence is not None:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            return call()
        except errors.OfflineModeIsEnabled as error:
            raise not_found(f"{at}: {place}", _first_line(error), _NO_HUB) from error
        except errors.HfHubHTTPError as error:
            if error.response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise not_found(f"{at}: {place}", _first_line(error), _NO_ACCESS) from error
            silence = error
        # Whatever the transport's library is; a file whose headers did not come is told as not in the local cache.
        except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError) as error:  # type: ignore[attr-defined]
            silence = error
    raise not_found(f"{at}: {place}", f"the Hub does not answer: {_first_line(silence)}", _NO_HUB)


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0][:300]
