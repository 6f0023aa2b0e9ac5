"""Every sample resource is one that the rules accept."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from multimodal_api.resource import Spec
from multimodal_api.rules import breaches

SAMPLES = sorted((Path(__file__).parents[3] / "examples/resources").glob("*.yaml"))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_is_accepted(sample: Path) -> None:
    resources = list(yaml.safe_load_all(sample.read_text()))
    assert resources
    for resource in resources:
        assert breaches(Spec.model_validate(resource["spec"])) == []


def test_the_resources_of_the_shared_store_share_a_key() -> None:
    path = next(path for path in SAMPLES if path.stem == "neva-shared-store")
    keys = {Spec.model_validate(resource["spec"]).engine_key() for resource in yaml.safe_load_all(path.read_text())}
    assert len(keys) == 1
