"""Builds that end in every possible way: a reader sees a whole engine or none, and the next attempt goes on."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from multimodal_api.build import BuildReport, Outcome, Stage
from multimodal_api.engine import (
    ENGINE_FORMAT,
    MANIFEST_NAME,
    Backend,
    BuildInputs,
    EngineFile,
    Manifest,
)
from multimodal_api.errors import ProductError
from multimodal_api.reasons import Reason
from multimodal_builder import stages
from multimodal_builder import store as store_module
from multimodal_builder.backends.registry import BACKENDS
from multimodal_builder.checkpoints.checkpoint import CheckpointLocations, HubReference
from multimodal_builder.progress import Tracker
from multimodal_builder.stages import STEPS, BuildRequest, run_build
from multimodal_builder.store import LOCKS, PARTIAL, Store
from support.archives import CLASSIC, CLIP, Archive
from support.builds import request_for
from support.fake_hub import FakeHub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ASKED = request_for(Path("model.nemo"))
INPUTS = ASKED.inputs
OTHER_KEY = "0123456789abcdef"


class QuickBackend:
    """Builds one file and asks nothing: torch's own start takes longer than all of these tests."""

    def __init__(self) -> None:
        self.verified = 0

    def check(self, _inputs: BuildInputs) -> None: ...

    def build(self, engine: Path, _inputs: BuildInputs) -> tuple[EngineFile, ...]:
        (engine / "built").write_bytes(b"by the backend")
        return (EngineFile(path="built", size=14, sha256=hashlib.sha256(b"by the backend").hexdigest()),)

    def verify(self, _engine: Path, _inputs: BuildInputs) -> str:
        self.verified += 1
        return "blue"


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> QuickBackend:
    quick = QuickBackend()
    monkeypatch.setitem(BACKENDS, Backend.TORCH, quick)
    return quick


@pytest.fixture
def request_(tmp_path: Path) -> BuildRequest:
    (tmp_path / "engines").mkdir()
    return replace(ASKED, checkpoints=CheckpointLocations(visual=Archive.read(CLASSIC).write(tmp_path)))


@pytest.fixture
def engines(tmp_path: Path) -> Store:
    return Store(tmp_path / "engines")


def build(request: BuildRequest, engines: Store) -> BuildReport:
    return run_build(request, engines, Tracker())


def check_store(engines: Store, key: str) -> Manifest | None:
    """A folder under the key is a whole engine, to the last bit, or it is not there."""
    if not engines.engine(key).exists():
        return None
    manifest = engines.find(key)
    assert manifest is not None
    assert manifest.key == key
    folder = engines.engine(key)
    listed = {file.path for file in manifest.files} | {MANIFEST_NAME}
    assert listed == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for file in manifest.files:
        assert hashlib.sha256((folder / file.path).read_bytes()).hexdigest() == file.sha256
    return manifest


def left_over(engines: Store) -> list[str]:
    partial = engines.root / PARTIAL
    return [path.name for path in partial.iterdir()] if partial.is_dir() else []


def test_a_build_publishes_a_whole_engine_and_nothing_else(request_: BuildRequest, engines: Store) -> None:
    report = build(request_, engines)
    manifest = check_store(engines, request_.key)
    assert manifest is not None
    assert (report.outcome, report.stage, report.size_bytes) == (Outcome.PUBLISHED, Stage.PUBLISH, manifest.size_bytes)
    assert list(report.seconds) == [stage.value for stage in Stage]
    assert manifest.inputs == INPUTS
    assert left_over(engines) == []
    assert {path.name for path in engines.root.iterdir()} == {request_.key, PARTIAL, LOCKS}


def test_the_same_checkpoint_gives_the_same_bytes(request_: BuildRequest, engines: Store) -> None:
    build(request_, engines)
    first = check_store(engines, request_.key)
    engines.engine(request_.key).rename(engines.root / "aside")
    build(request_, engines)
    second = check_store(engines, request_.key)
    assert first is not None
    assert second is not None
    assert (first.files, first.checkpoint_sha256) == (second.files, second.checkpoint_sha256)


def test_an_engine_in_the_store_is_found_and_nothing_is_read(request_: BuildRequest, engines: Store) -> None:
    build(request_, engines)
    request_.checkpoints.visual.unlink()
    for changed in (request_, replace(request_, stop_after_inspect=True), replace(request_, expect_engine=True)):
        assert build(changed, engines).outcome is Outcome.FOUND


def test_inspection_alone_writes_nothing(request_: BuildRequest, engines: Store) -> None:
    report = build(replace(request_, stop_after_inspect=True), engines)
    assert (report.outcome, report.stage) == (Outcome.INSPECTED, Stage.INSPECT)
    assert list(engines.root.iterdir()) == []


@pytest.mark.parametrize("stop", [True, False])
def test_a_bad_checkpoint_leaves_no_engine(request_: BuildRequest, engines: Store, *, stop: bool) -> None:
    Archive.read(CLASSIC).set_config("activation", "gelu").set_config("num_moe_experts", 8).write(
        request_.checkpoints.visual.parent
    )
    with pytest.raises(ProductError, match="and 1 more problems") as caught:
        build(replace(request_, stop_after_inspect=stop), engines)
    assert caught.value.failure.reason is Reason.UNSUPPORTED_MODEL
    assert check_store(engines, request_.key) is None


def test_an_expected_engine_that_is_absent_is_said_so(request_: BuildRequest, engines: Store) -> None:
    request_.checkpoints.visual.unlink()
    with pytest.raises(ProductError) as caught:
        build(replace(request_, expect_engine=True), engines)
    assert caught.value.failure.reason is Reason.ENGINE_NOT_FOUND


@pytest.mark.parametrize("damage", ["a shorter file", "no manifest", "a file less", "another key", "an old format"])
def test_a_damaged_engine_is_built_again_or_refused(request_: BuildRequest, engines: Store, damage: str) -> None:
    build(request_, engines)
    folder = engines.engine(request_.key)
    manifest = folder / MANIFEST_NAME
    match damage:
        case "a shorter file":
            (folder / "built").write_bytes(b"")
        case "no manifest":
            manifest.unlink()
        case "a file less":
            (folder / "built").unlink()
        case "another key":
            manifest.write_text(manifest.read_text().replace(request_.key, OTHER_KEY))
        case "an old format":
            current = f'"engineFormat": {ENGINE_FORMAT}'
            assert current in manifest.read_text()
            manifest.write_text(manifest.read_text().replace(current, '"engineFormat": 1'))
    with pytest.raises(ProductError) as caught:
        build(replace(request_, expect_engine=True), engines)
    assert caught.value.failure.reason is Reason.ENGINE_CORRUPT
    assert build(request_, engines).outcome is Outcome.PUBLISHED
    assert check_store(engines, request_.key) is not None
    assert left_over(engines) == []


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked process, so that it can be killed; give the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("stage", list(Stage))
def test_a_build_killed_around_a_stage_goes_on_with_it(
    request_: BuildRequest, engines: Store, monkeypatch: pytest.MonkeyPatch, stage: Stage, moment: str
) -> None:
    step = STEPS[stage]

    def deadly(attempt: Any) -> None:
        if moment == "after":
            step(attempt)
        kill()

    with monkeypatch.context() as patched:
        patched.setitem(STEPS, stage, deadly)
        assert in_child(lambda: build(request_, engines)) == signal.SIGKILL
    published = stage is Stage.PUBLISH and moment == "after"
    assert (check_store(engines, request_.key) is not None) == published

    entered: list[Stage] = []
    for name, action in STEPS.items():
        monkeypatch.setitem(STEPS, name, noting(name, action, entered))
    tracker = Tracker()
    report = run_build(request_, engines, tracker)
    assert report.outcome is (Outcome.FOUND if published else Outcome.PUBLISHED)
    assert check_store(engines, request_.key) is not None
    assert left_over(engines) == []
    finished = list(Stage)[: list(Stage).index(stage) + (moment == "after")]
    redone = [name for name in entered if name in finished and name is not Stage.INSPECT]
    assert redone == []


def noting(stage: Stage, step: Callable[[Any], None], entered: list[Stage]) -> Callable[[Any], None]:
    """Note stages that do something: those whose marker is not there yet."""

    def noted(attempt: Any) -> None:
        if not (attempt.work.root / f"{stage.value}.json").exists():
            entered.append(stage)
        step(attempt)

    return noted


def test_a_build_killed_at_every_write_to_the_disk_leaves_a_whole_engine_or_none(
    request_: BuildRequest, engines: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round gets one write further than the one before; a second attempt then ends what was begun."""
    real = os.fsync
    for allowed in range(1000):
        left = allowed

        def deadly(descriptor: int) -> None:
            nonlocal left
            if left == 0:
                kill()
            left -= 1
            real(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", deadly)
            ended = in_child(lambda: build(request_, engines))
        whole = check_store(engines, request_.key)
        if ended == 0:
            break
        build(request_, engines)
        assert check_store(engines, request_.key) is not None
        assert left_over(engines) == []
        engines.prune(set())
    assert allowed > 20
    assert whole is not None


def test_work_of_another_input_is_not_gone_on_with(
    request_: BuildRequest, engines: Store, monkeypatch: pytest.MonkeyPatch, backend: QuickBackend
) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(STEPS, Stage.PUBLISH, lambda _: kill())
        in_child(lambda: build(request_, engines))
    os.utime(request_.checkpoints.visual)  # a newer file of the same size under the same name
    build(request_, engines)
    assert backend.verified == 1
    assert check_store(engines, request_.key) is not None


def test_only_one_build_of_a_key_runs_at_once(
    request_: BuildRequest, engines: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.2)
    with engines.lock(request_.key):
        with pytest.raises(ProductError) as caught:
            build(request_, engines)
        assert caught.value.failure.reason is Reason.DEADLINE_EXCEEDED
        assert build(replace(request_, key=OTHER_KEY), engines).outcome is Outcome.PUBLISHED
    assert build(request_, engines).outcome is Outcome.PUBLISHED


def test_engines_that_are_not_kept_are_removed_after_publishing(request_: BuildRequest, engines: Store) -> None:
    for key in (OTHER_KEY, "f" * 16):
        build(replace(request_, key=key), engines)
    (engines.root / "somebody's notes").mkdir()
    abandoned = engines.root / PARTIAL / ("a" * 16)
    abandoned.mkdir()
    busy = engines.root / PARTIAL / ("b" * 16)
    busy.mkdir()
    with engines.lock("b" * 16):
        build(replace(request_, keep=(OTHER_KEY,)), engines)
    assert check_store(engines, OTHER_KEY) is not None
    assert check_store(engines, request_.key) is not None
    assert not engines.engine("f" * 16).exists()
    assert (engines.root / "somebody's notes").is_dir()
    assert not abandoned.exists()
    assert busy.exists()


def test_nothing_is_removed_without_being_told(request_: BuildRequest, engines: Store) -> None:
    build(replace(request_, key=OTHER_KEY), engines)
    build(request_, engines)
    assert check_store(engines, OTHER_KEY) is not None


def test_a_full_disk_is_seen_before_anything_is_written(
    request_: BuildRequest, engines: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "ROOM", 2**60)
    with pytest.raises(ProductError) as caught:
        build(request_, engines)
    assert caught.value.failure.reason is Reason.DISK_FULL
    assert str(engines.root) in caught.value.failure.at


def test_a_build_that_ran_out_of_room_goes_on_when_there_is_some(
    request_: BuildRequest, engines: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            build(request_, engines)
    assert check_store(engines, request_.key) is None
    assert build(request_, engines).outcome is Outcome.PUBLISHED


@pytest.fixture(name="hub")
def _hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    clip = {path.name: path.read_bytes() for path in CLIP.iterdir()}
    archive = Archive.read(CLASSIC).set_config("mm_cfg.vision_encoder.from_pretrained", "owner/clip").to_bytes()
    with FakeHub({"owner/clip": clip, "owner/neva": {"neva.nemo": archive}}).running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_what_lies_on_no_volume_comes_from_the_hub_once_and_does_not_stay(
    request_: BuildRequest, engines: Store, hub: FakeHub
) -> None:
    locations = CheckpointLocations(visual=HubReference(repository="owner/neva", revision="main"))
    request = replace(request_, checkpoints=locations)
    build(replace(request, stop_after_inspect=True), engines)
    fetched = [line for line in hub.asked if line.startswith("GET /owner")]
    assert any("neva.nemo" in line for line in fetched)
    assert any("model.safetensors" in line for line in fetched)
    assert engines.downloads(request.key).is_dir()
    build(request, engines)
    assert [line for line in hub.asked if line.startswith("GET /owner")] == fetched
    assert check_store(engines, request.key) is not None
    assert not engines.downloads(request.key).exists()


def test_what_was_fetched_for_an_engine_that_nobody_wants_is_removed(request_: BuildRequest, engines: Store) -> None:
    stray = engines.downloads("0" * 16)
    stray.mkdir(parents=True)
    build(replace(request_, keep=()), engines)
    assert not stray.exists()
