"""The CustomResourceDefinition, generated from the models; `make generate` writes it to `crds/`.

Kubernetes wants a structural schema: no references, no unions, no titles, and defaults at every level, since a nested
default is filled in only where its parent exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from multimodal_api import labels
from multimodal_api.resource import Spec
from multimodal_api.rules import NAME_LENGTH, NAME_PATTERN, RULES
from multimodal_api.status import Status

if TYPE_CHECKING:
    from pydantic import BaseModel

Json = dict[str, Any]

_KEPT: Final = frozenset(
    {
        "type",
        "description",
        "enum",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "maxProperties",
        "format",
        "default",
        "required",
        "x-kubernetes-preserve-unknown-fields",
    }
)
"""Keywords that pass from pydantic's schema to the CRD as they are."""

PRINTER_COLUMNS: Final = (
    ("Phase", "string", ".status.phase", 0),
    ("Ready", "string", ".status.conditions[?(@.type=='Ready')].status", 0),
    ("Model", "string", ".spec.model.type", 0),
    ("GPUs", "integer", ".spec.numGpus", 0),
    ("Replicas", "string", ".status.readyReplicas", 0),
    ("Engine", "string", ".status.engine.key", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason", 1),
    ("Backend", "string", ".status.engine.backend", 1),
    ("URL", "string", ".status.url", 1),
)
"""Name, type, path and priority; priority 1 is shown by `-o wide`."""


def definition() -> Json:
    """Build the CustomResourceDefinition."""
    spec = structural(Spec)
    spec["x-kubernetes-validations"] = [
        {
            "rule": rule.cel,
            "message": f"{rule.at}: {rule.remedy}",
            "messageExpression": rule.message_cel(),
        }
        for rule in RULES
    ]
    status = structural(Status)
    conditions = status["properties"]["conditions"]
    conditions |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    # Not an enumeration: an operator that knows one more reason must be able to report to an older CRD.
    conditions["items"]["properties"]["reason"] = {
        "type": "string",
        "description": "Why, from the closed list.",
        "pattern": "^[A-Z][A-Za-z]*$",
        "maxLength": 64,
    }
    version = {
        "name": labels.VERSION,
        "served": True,
        "storage": True,
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "description": (
                    "MultimodalDeployment builds an inference engine from a multimodal checkpoint "
                    "and serves it with Triton."
                ),
                "required": ["spec"],
                "properties": {
                    "apiVersion": {"type": "string", "description": "Group and version of this object."},
                    "kind": {"type": "string", "description": "MultimodalDeployment."},
                    "metadata": {"type": "object"},
                    "spec": spec,
                    "status": status,
                },
                "x-kubernetes-validations": [
                    {
                        "rule": (
                            f"self.metadata.name.size() <= {NAME_LENGTH}"
                            f" && self.metadata.name.matches('{NAME_PATTERN}')"
                        ),
                        "message": (
                            f"metadata.name: is not a Service name of at most {NAME_LENGTH} characters; "
                            "write lower-case letters, digits and '-', beginning with a letter"
                        ),
                    }
                ],
            }
        },
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.serving.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path} | ({"priority": priority} if priority else {})
            for name, kind, path, priority in PRINTER_COLUMNS
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{labels.PLURAL}.{labels.GROUP}"},
        "spec": {
            "group": labels.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": labels.KIND,
                "listKind": f"{labels.KIND}List",
                "plural": labels.PLURAL,
                "singular": labels.SINGULAR,
                "shortNames": [labels.SHORT_NAME],
                "categories": [labels.CATEGORY],
            },
            "versions": [version],
        },
    }


def structural(model: type[BaseModel]) -> Json:
    """Turn a model's JSON schema into a structural one."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(schema, schema.get("$defs", {}))


def _convert(node: Json, defs: dict[str, Json]) -> Json:
    node = _without_null(node)
    if "$ref" in node:
        target = defs[node["$ref"].rsplit("/", 1)[-1]]
        node = target | {key: value for key, value in node.items() if key != "$ref"}
    kept = {key: value for key, value in node.items() if key in _KEPT}
    if kept.get("default", ...) is None:
        del kept["default"]
    if properties := node.get("properties"):
        kept["properties"] = {name: _convert(child, defs) for name, child in properties.items()}
        if isinstance(kept.get("default"), dict):
            kept["default"] = {}  # the fields' own defaults fill it in
    elif kept.get("x-kubernetes-preserve-unknown-fields"):
        kept["type"] = "object"
    elif isinstance(values := node.get("additionalProperties"), dict):
        kept["additionalProperties"] = _convert(values, defs)
    if "items" in node:
        kept["items"] = _convert(node["items"], defs)
    if kept.get("type") == "integer":
        kept["format"] = "int64"
    return kept


def _without_null(node: Json) -> Json:
    """Replace `anyOf: [X, null]` by X: in Kubernetes an optional field is absent, never null."""
    if "anyOf" not in node:
        return node
    (only,) = [choice for choice in node["anyOf"] if choice != {"type": "null"}]
    rest: Json = {key: value for key, value in node.items() if key != "anyOf"}
    return {**only, **rest}
