"""Write the CustomResourceDefinition beside this file, or with `--check` fail when it is not current."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import yaml

from multimodal_api import labels
from multimodal_api.crd import definition

TARGET: Final = Path(__file__).with_name(f"{labels.PLURAL}.{labels.GROUP}.yaml")
HEADER: Final = "# Generated from multimodal_api by `make generate`; do not edit.\n"


def main() -> int:
    """Write or check the file."""
    # The round trip through JSON unshares equal lists, which YAML would write as anchors.
    text = HEADER + yaml.safe_dump(json.loads(json.dumps(definition())), sort_keys=False, width=120)
    if "--check" in sys.argv[1:]:
        if TARGET.exists() and TARGET.read_text() == text:
            return 0
        sys.stderr.write(f"{TARGET.name} is not current: run `make generate`\n")
        return 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
