from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multimodal_api.errors import Failure, ProductError
from multimodal_api.reasons import Reason
from multimodal_api.worker_protocol import Done, FinishReason, Generate, Ready, Sampling, Tokens
from multimodal_server.worker_client import WorkerClient
from support.answering import events

SECONDS = 30.0
FAKE = Path(__file__).with_name("fake_worker.py")
Told = queue.SimpleQueue[Ready | Failure]
Start = Callable[[str], tuple[WorkerClient, Told]]


@pytest.fixture
def start() -> Iterator[Start]:
    clients: list[WorkerClient] = []

    def start_one(how: str) -> tuple[WorkerClient, Told]:
        ours, theirs = socket.socketpair()
        process = subprocess.Popen([sys.executable, str(FAKE), str(theirs.fileno()), how], pass_fds=[theirs.fileno()])
        theirs.close()
        told: Told = queue.SimpleQueue()
        clients.append(WorkerClient(process, ours, told.put))
        return clients[-1], told

    yield start_one
    for client in clients:
        client.stop()


def asking(client: WorkerClient, what: int, *, tokens: int = 3) -> Generate:
    return Generate(
        request_id=client.next_id(),
        token_ids=(what, 0),
        sampling=Sampling(),
        max_new_tokens=tokens,
        stop_token_ids=frozenset(),
    )


def test_tokens_then_done(start: Start) -> None:
    client, told = start("")
    assert isinstance(told.get(timeout=SECONDS), Ready)
    *tokens, end = events(client, asking(client, 1))
    assert [token for event in tokens if isinstance(event, Tokens) for token in event.token_ids] == [10, 11, 12]
    assert isinstance(end, Done)
    assert end.reason is FinishReason.LENGTH


def test_many_threads_get_their_own_events(start: Start) -> None:
    client, _ = start("")
    counts: dict[int, int] = {}

    def ask(tokens: int) -> None:
        counts[tokens] = len(list(events(client, asking(client, 1, tokens=tokens))))

    threads = [threading.Thread(target=ask, args=(tokens,)) for tokens in range(1, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert counts == {tokens: tokens + 1 for tokens in range(1, 40)}


def test_a_refusal_is_raised_as_it_came(start: Start) -> None:
    client, _ = start("")
    with pytest.raises(ProductError, match="no room") as caught:
        list(events(client, asking(client, 2)))
    assert caught.value.failure.reason is Reason.OUT_OF_GPU_MEMORY


def test_silence_ends_in_a_deadline_and_cancels(start: Start) -> None:
    client, _ = start("")
    with pytest.raises(ProductError) as caught:
        list(events(client, asking(client, 3), seconds=0.1))
    assert caught.value.failure.reason is Reason.DEADLINE_EXCEEDED
    assert cancellations(client) == 1


def cancellations(client: WorkerClient) -> int:
    stats = client.stats(SECONDS)
    assert stats is not None
    return stats.running


def test_who_stops_listening_cancels(start: Start) -> None:
    client, _ = start("")
    heard = events(client, asking(client, 5))
    assert isinstance(next(heard), Tokens)
    heard.close()
    assert cancellations(client) == 1


def test_who_listens_to_the_end_cancels_nothing(start: Start) -> None:
    client, _ = start("")
    list(events(client, asking(client, 1)))
    assert cancellations(client) == 0


@pytest.mark.parametrize(("what", "words"), [(4, "SIGKILL"), (6, "SIGKILL")], ids=["killed", "garbage"])
def test_a_death_is_told_once_and_ends_all_requests(start: Start, what: int, words: str) -> None:
    client, told = start("")
    assert isinstance(told.get(timeout=SECONDS), Ready)
    waiting = events(client, asking(client, 5))
    next(waiting)
    with pytest.raises(ProductError):
        list(events(client, asking(client, what)))
    with pytest.raises(ProductError):
        next(waiting)
    failure = told.get(timeout=SECONDS)
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.SERVER_FAILED
    assert words in failure.problem
    with pytest.raises(ProductError, match="ended"):
        list(events(client, asking(client, 1)))
    assert told.empty()


def test_a_defect_of_who_is_told_is_no_silence_for_the_others(start: Start) -> None:
    client, told = start("")
    assert isinstance(told.get(timeout=SECONDS), Ready)

    def defect(event: object) -> None:
        if not isinstance(event, Failure):
            raise KeyError("a defect")

    client.begin(asking(client, 1), [], defect)
    failure = told.get(timeout=SECONDS)
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.SERVER_FAILED


def test_a_worker_that_cannot_load_gives_its_own_reason(start: Start) -> None:
    _, told = start("fail")
    failure = told.get(timeout=SECONDS)
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.OUT_OF_GPU_MEMORY


def test_an_end_that_was_asked_for_is_no_death(start: Start) -> None:
    client, told = start("")
    assert isinstance(told.get(timeout=SECONDS), Ready)
    client.stop()
    assert told.empty()
