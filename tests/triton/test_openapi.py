"""Schemathesis over the document of a real server: whatever is sent, the answer is one that the document declares."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.triton.conftest import FUZZ_FACTOR, Server, inline, picture

pytestmark = [pytest.mark.triton, pytest.mark.timeout(3600)]

EXAMPLES = 60 * FUZZ_FACTOR
"""Of each operation and mode."""
CHECKS: Any = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
PARTS = st.sampled_from(
    [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": inline(picture(0))}},
        {"type": "image_url", "image_url": {"url": inline(picture(1))[:-200]}},
    ]
)
CONTENTS = st.none() | st.text(max_size=40) | st.lists(PARTS, min_size=1, max_size=3)
"""What a user says in place of what Schemathesis found, which is no conversation most of the time."""


@pytest.fixture(scope="module")
def document(server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{server.openai}/openapi.json")


OPERATIONS = (
    ("post", "/v1/chat/completions"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{model}"),
    ("get", "/health"),
    ("get", "/version"),
)
"""All but the document's own, which Schemathesis leaves out."""

TAKING = OPERATIONS[0], OPERATIONS[2]
"""Those that take something, which can be wrong."""
CASES = [
    pytest.param(*operation, mode, id=f"{mode.value} {' '.join(operation)}")
    for mode, operations in ((GenerationMode.POSITIVE, OPERATIONS), (GenerationMode.NEGATIVE, TAKING))
    for operation in operations
]


def test_every_operation_is_asked(document: Any) -> None:
    described = {(found.ok().method, found.ok().path) for found in document.get_all_operations()}
    assert described == set(OPERATIONS)
    taking = {(method, path) for method, path in described if takes(document[path][method])}
    assert taking == set(TAKING)


def takes(operation: Any) -> bool:
    return bool(operation.body or operation.path_parameters)


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_answers_are_as_the_document_says(document: Any, method: str, path: str, mode: GenerationMode) -> None:
    operation = document[path][method]

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode), content=CONTENTS)
    def check(case: Any, content: Any) -> None:
        if content is not None and isinstance(case.body, dict):
            case.body |= {"messages": [{"role": "user", "content": content}]}
        case.call_and_validate(checks=CHECKS)

    check()
