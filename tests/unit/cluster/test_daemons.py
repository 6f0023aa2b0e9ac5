"""Only a process that is surely ours is taken for ours."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_cluster import daemons
from multimodal_cluster.daemons import Daemon
from multimodal_cluster.errors import ClusterError
from multimodal_cluster.paths import Paths
from multimodal_cluster.progress import Progress

SLEEPER = Daemon("sleeper", (sys.executable, "-c", "import time; time.sleep(60)"), lambda: True, 10, tracked=False)


@pytest.fixture(name="paths")
def _paths(tmp_path: Path) -> Iterator[Paths]:
    paths = Paths(tmp_path)
    yield paths
    daemons.stop("sleeper", paths)


def test_a_daemon_that_runs_as_described_is_left_alone(paths: Paths) -> None:
    daemons.ensure(SLEEPER, paths, Progress())
    first = daemons.find("sleeper", paths)
    daemons.ensure(SLEEPER, paths, Progress())
    assert first is not None
    assert daemons.find("sleeper", paths) == first


@pytest.mark.parametrize(
    "changed",
    [
        dataclasses.replace(SLEEPER, environment={"MODE": "other"}),
        dataclasses.replace(SLEEPER, command=(*SLEEPER.command, "other")),
    ],
    ids=["environment", "arguments"],
)
def test_a_daemon_that_should_run_otherwise_is_restarted(paths: Paths, changed: Daemon) -> None:
    daemons.ensure(SLEEPER, paths, Progress())
    first = daemons.find("sleeper", paths)
    daemons.ensure(changed, paths, Progress())
    second = daemons.find("sleeper", paths)
    assert first is not None
    assert second is not None
    assert first.pid != second.pid
    assert not first.alive()


@pytest.mark.parametrize("field", ["started", "boot"])
def test_another_process_under_the_same_number_is_not_ours(paths: Paths, field: str) -> None:
    daemons.ensure(SLEEPER, paths, Progress())
    file = paths.pids / "sleeper"
    truth = file.read_text()
    record = json.loads(truth)
    file.write_text(json.dumps({**record, field: 1 if field == "started" else "an earlier boot"}))
    assert daemons.find("sleeper", paths) is None
    file.write_text(truth)
    assert daemons.find("sleeper", paths) is not None


def test_a_stopped_daemon_has_ended(paths: Paths) -> None:
    daemons.ensure(SLEEPER, paths, Progress())
    process = daemons.find("sleeper", paths)
    daemons.stop("sleeper", paths)
    assert process is not None
    assert not process.alive()
    assert daemons.find("sleeper", paths) is None


def test_a_daemon_that_ends_is_an_error_with_its_last_words(paths: Paths) -> None:
    failing = Daemon("failing", ("sh", "-c", "echo no room on the disk; exit 3"), lambda: False, 10, tracked=False)
    with pytest.raises(ClusterError, match="failing: ended at once") as caught:
        daemons.ensure(failing, paths, Progress())
    report = caught.value.report()
    assert str(paths.logs / "failing.log") in report
    assert "| no room on the disk" in report


def test_the_last_words_of_an_earlier_process_are_told_from_this_ones(paths: Paths) -> None:
    talking = Daemon("failing", ("sh", "-c", "echo no room on the disk; exit 3"), lambda: False, 10, tracked=False)
    silent = dataclasses.replace(talking, command=("false",))
    for daemon in (talking, silent):
        with pytest.raises(ClusterError) as caught:
            daemons.ensure(daemon, paths, Progress())
    *_, earlier, last = caught.value.report().splitlines()
    assert earlier == "  | no room on the disk"
    assert last.startswith("  | --- failing is started at 20")


def test_a_daemon_that_is_slow_to_be_ready_is_waited_for_again(paths: Paths) -> None:
    slow = dataclasses.replace(SLEEPER, ready=lambda: False, seconds=0.1)
    with pytest.raises(ClusterError) as caught:
        daemons.ensure(slow, paths, Progress())
    first = daemons.find("sleeper", paths)
    daemons.ensure(dataclasses.replace(slow, ready=lambda: True), paths, Progress())
    assert "`up` again waits on" in caught.value.remedy
    assert first is not None
    assert daemons.find("sleeper", paths) == first


def test_a_daemon_that_never_becomes_ready_is_an_error(paths: Paths) -> None:
    with pytest.raises(ClusterError, match=r"sleeper: not ready after 0\.3s"):
        daemons.ensure(dataclasses.replace(SLEEPER, ready=lambda: False, seconds=0.3), paths, Progress())
