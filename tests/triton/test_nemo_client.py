"""NeMo's own clients, unmodified, ask the tiny model of every family about media that no training showed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny.judging import accepts

from multimodal_api.families import FAMILIES, Family, Modality
from multimodal_recipes import videos
from support import nemo_client, tiny_families
from support.clips import LOSSLESS, encode
from tests.triton.conftest import Server

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]


class Asked(NamedTuple):
    """A held-out question."""

    medium: str
    text: str
    answer: str


def held_out(family: Family, folder: Path) -> list[Asked]:
    """The questions of a family. decord reads no GIF: videos are written once more, frame by frame the same."""
    source = tiny_families.archive(family).parent / "heldout"
    asked = []
    for each in json.loads((source / "heldout.json").read_text()):
        (name,) = (each[kind] for kind in ("picture", "video", "sound") if kind in each)
        path = source / name
        if path.suffix == ".gif":
            path = (folder / f"{family}-{name}").with_suffix(".mp4")
            if not path.exists():
                frames = videos.decode((source / name).read_bytes(), at=name)
                path.write_bytes(encode(frames, LOSSLESS["mp4"]))
        asked.append(Asked(str(path), each["question"], each["answer"]))
    return asked


@pytest.fixture(scope="module")
def servers(serve: Callable[[Iterable[Family]], list[Server]]) -> Mapping[Family, Server]:
    return dict(zip(Family, serve(Family), strict=True))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Family, list[Asked]]:
    folder = tmp_path_factory.mktemp("media")
    return {family: held_out(family, folder) for family in Family}


def line(server: Server, family: Family, asked: Asked, client: str = nemo_client.NEMO, **query: Any) -> dict[str, Any]:
    query = {"input_text": asked.text, "input_media": asked.medium} | query
    return {"client": client, "url": server.http, "family": family.value, "query": query}


def wrong(asked: Iterable[Asked], answers: Iterable[dict[str, Any]]) -> list[tuple[Asked, Any]]:
    return [
        (question, said)
        for question, said in zip(asked, answers, strict=True)
        if "error" in said or not accepts(question.answer, said["answer"][0][0])
    ]


def test_nemo_s_client_gets_right_answers_of_every_family(
    servers: Mapping[Family, Server], questions: Mapping[Family, list[Asked]]
) -> None:
    asked = [(family, question) for family in Family for question in questions[family]]
    answers = nemo_client.ask([line(servers[family], family, question) for family, question in asked])
    assert wrong([question for _, question in asked], answers) == []
    assert {len(said["answer"]) for said in answers} == {1}


def test_its_successor_s_client_too(servers: Mapping[Family, Server], questions: Mapping[Family, list[Asked]]) -> None:
    seeing = [family for family in Family if FAMILIES[family].modality is Modality.VISION]
    asked = [(family, question) for family in seeing for question in questions[family][:5]]
    lines = [line(servers[family], family, question, nemo_client.EXPORT_DEPLOY) for family, question in asked]
    assert wrong([question for _, question in asked], nemo_client.ask(lines)) == []


def test_what_its_arguments_may_be(servers: Mapping[Family, Server], questions: Mapping[Family, list[Asked]]) -> None:
    numbers = ("batch_size", "max_output_len", "top_k", "top_p", "temperature", "repetition_penalty", "num_beams")
    one, sound = questions[Family.NEVA][0], questions[Family.SALM][0]
    server = servers[Family.NEVA]
    asked: list[tuple[Asked, dict[str, Any]]] = [
        (one, line(server, Family.NEVA, one) | {"url": f"http://{server.http}"}),
        (one, line(server, Family.NEVA, one) | {"url": server.grpc}),
        (one, line(server, Family.NEVA, one, batch_size=3)),
        (one, line(server, Family.NEVA, one, lora_uids=["-1"])),
        (one, line(server, Family.NEVA, one, **dict.fromkeys(numbers))),
        (sound, line(servers[Family.SALM], Family.SALM, sound, input_text=f"Q: {sound.text} A:")),
    ]
    answers = nemo_client.ask([each for _, each in asked])
    assert wrong([question for question, _ in asked], answers) == []
    assert [len(said["answer"]) for said in answers] == [1, 1, 3, 1, 1, 1]


def test_an_error_is_raised_in_it_and_never_an_answer(
    servers: Mapping[Family, Server], questions: Mapping[Family, list[Asked]]
) -> None:
    one = questions[Family.NEVA][0]
    refused = ({"input_text": " "}, {"num_beams": 4}, {"max_output_len": 49}, {"lora_uids": ["7"]})
    answers = nemo_client.ask([line(servers[Family.NEVA], Family.NEVA, one, **changed) for changed in refused])
    for said, field in zip(answers, ("input_text", "num_beams", "max_output_len", "lora_uids"), strict=True):
        assert f"RequestRefused: {field}: " in said["error"], said
