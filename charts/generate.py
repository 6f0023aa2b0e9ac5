"""Write the chart's copy of the CustomResourceDefinition, its schema and its README; `--check` fails when one is stale.

`values.yaml` is the source: the comments `# -- …` describe values, the defaults give their types.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

CHART: Final = Path(__file__).with_name("multimodal-operator")
DEFINITION: Final = "multimodaldeployments.multimodal.dev.yaml"
MARK: Final = "# -- "
TYPES: Final = {"str": "string", "bool": "boolean", "int": "integer", "seq": "array", "map": "object"}
NAME: Final = {"type": "string", "minLength": 1, "maxLength": 63}
# What a default cannot say.
BOUNDS: Final[dict[str, dict[str, Any]]] = {
    "images.pullPolicy": {"enum": ["IfNotPresent", "Always", "Never"]},
    "images.pullSecrets": {"items": NAME},
    "logLevel": {"enum": ["debug", "info", "warning", "error"]},
    "test.httpPort": {"minimum": 1, "maximum": 65535},
    "test.maxOutputLen": {"minimum": 1},
    "test.picture": {"contentEncoding": "base64"},
    "tolerations": {"items": {"type": "object"}},
    "watch.namespaces": {"items": NAME, "uniqueItems": True},
}
# The user's own keys; all other objects have exactly the keys of values.yaml.
FREE: Final = {"affinity", "nodeSelector", "podAnnotations", "podLabels", "resources", "serviceAccount.annotations"}
README: Final = """\
# multimodal-operator

Installs the operator, the CustomResourceDefinition `multimodaldeployments.multimodal.dev` and the rights that the
operator needs, and no more: a ClusterRole, or a Role in each of `watch.namespaces` (and then one right everywhere:
to let go of its own resources in a namespace that is being deleted).

```
helm install multimodal-operator charts/multimodal-operator --namespace multimodal-system --create-namespace \\
  --set images.registry=registry.example.com/multimodal
```

`helm test` asks a model of yours a question, once `test.deployment` names one. `helm uninstall` leaves the definition,
the resources, their pods and their engines in place (`crds.keep`); delete the resources first to have the operator
clean up after them.

| value | default | meaning |
|---|---|---|
{rows}
"""


@dataclass(frozen=True, slots=True)
class Value:
    """One leaf of values.yaml."""

    path: str
    kind: str
    """JSON's name of its type."""
    default: Any
    meaning: str


def leaves(lines: list[str], node: yaml.MappingNode, prefix: str = "") -> Iterator[Value]:
    """Walk the values in order.

    Raises:
        ValueError: a value has no comment.
    """
    for key, child in node.value:
        path = f"{prefix}{key.value}"
        if isinstance(child, yaml.MappingNode) and path not in FREE:
            yield from leaves(lines, child, f"{path}.")
            continue
        comment = lines[key.start_mark.line - 1].strip()
        if not comment.startswith(MARK):
            raise ValueError(f"values.yaml: {path} has no comment; put `{MARK}…` in the line above it")
        kind = TYPES[child.tag.rpartition(":")[2]]
        yield Value(path, kind, yaml.safe_load(yaml.serialize(child)), comment.removeprefix(MARK))


def schema(values: list[Value]) -> dict[str, Any]:
    """Make the JSON schema that Helm checks values against."""
    root: dict[str, Any] = {"$schema": "http://json-schema.org/draft-07/schema#", **_closed()}
    # Helm hands parent charts' values through.
    root["properties"]["global"] = {"type": "object"}
    for value in values:
        *parents, last = value.path.split(".")
        place = root
        for name in parents:
            place = place["properties"].setdefault(name, _closed())
        place["properties"][last] = {"description": value.meaning, "type": value.kind, **BOUNDS.get(value.path, {})}
    return root


def _closed() -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": {}}


def readme(values: list[Value]) -> str:
    """Make the README."""
    rows = [f"| `{value.path}` | `{json.dumps(value.default)}` | {value.meaning} |" for value in values]
    return README.format(rows="\n".join(rows))


def generated() -> dict[Path, str]:
    """Give path → content of every generated file."""
    text = (CHART / "values.yaml").read_text()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise TypeError("values.yaml: no mapping")
    values = list(leaves(text.splitlines(), root))
    return {
        CHART / "files" / DEFINITION: (CHART.parent.parent / "crds" / DEFINITION).read_text(),
        CHART / "values.schema.json": json.dumps(schema(values), indent=2) + "\n",
        CHART / "README.md": readme(values),
    }


def main() -> int:
    """Write or check the files."""
    files = generated()
    stale = [file for file, text in files.items() if not file.exists() or file.read_text() != text]
    if "--check" in sys.argv[1:]:
        for file in stale:
            sys.stderr.write(f"{file.relative_to(CHART.parent)} is not current: run `make generate`\n")
        return 1 if stale else 0
    for file in stale:
        file.parent.mkdir(exist_ok=True)
        file.write_text(files[file])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
