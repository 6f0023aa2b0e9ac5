"""Server-side apply, as much of it as the operator relies on: owners per field, conflicts, removal of what is left."""

from __future__ import annotations

import copy
from typing import Any

Json = dict[str, Any]
Path = tuple[Any, ...]

# Lists of maps that the API server merges by key; all other lists are atomic.
KEYS = {
    "containers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "volumeMounts": ("mountPath",),
    "ownerReferences": ("uid",),
    "conditions": ("type",),
    "imagePullSecrets": ("name",),
}
# Maps that have one owner as a whole.
ATOMIC = {"selector"}
PORT_KEYS = {"spec": ("port", "protocol"), "containers": ("containerPort", "protocol")}


def keys_of(path: Path) -> tuple[str, ...] | None:
    """Give the merge keys of the list at a path, None when it is atomic."""
    name = path[-1] if path else None
    if name == "ports":
        return PORT_KEYS["containers"] if "containers" in path else PORT_KEYS["spec"]
    return KEYS.get(name) if isinstance(name, str) else None


def leaves(value: Any) -> dict[Path, Any]:
    """Flatten to leaf paths; items of keyed lists are addressed by a tuple of their keys."""
    found: dict[Path, Any] = {}
    _flatten(value, (), found)
    return found


def _flatten(value: Any, path: Path, found: dict[Path, Any]) -> None:
    if isinstance(value, dict) and value and not (path and path[-1] in ATOMIC):
        for key, item in value.items():
            _flatten(item, (*path, key), found)
    elif isinstance(value, list) and value and (keys := keys_of(path)):
        for item in value:
            _flatten(item, (*path, tuple(item.get(key) for key in keys)), found)
    else:
        found[path] = value


def read(obj: Any, path: Path) -> Any:
    """Give the value at a leaf path, or None."""
    for depth, part in enumerate(path):
        if isinstance(part, tuple) and isinstance(obj, list):
            keys = keys_of(path[:depth]) or ()
            obj = next((item for item in obj if tuple(item.get(key) for key in keys) == part), None)
        elif isinstance(obj, dict):
            obj = obj.get(part)
        else:
            return None
        if obj is None:
            return None
    return obj


def merge(live: Any, applied: Any, path: Path = ()) -> Any:
    """Put the applied fields over the live ones."""
    if isinstance(applied, dict) and isinstance(live, dict) and not (path and path[-1] in ATOMIC):
        merged = dict(live)
        for key, value in applied.items():
            merged[key] = merge(live.get(key), value, (*path, key))
        return merged
    keys = keys_of(path)
    if isinstance(applied, list) and isinstance(live, list) and keys:
        merged_list = list(live)
        for item in applied:
            name = tuple(item.get(key) for key in keys)
            place = next(
                (at for at, known in enumerate(merged_list) if tuple(known.get(key) for key in keys) == name), None
            )
            if place is None:
                merged_list.append(copy.deepcopy(item))
            else:
                merged_list[place] = merge(merged_list[place], item, (*path, name))
        return merged_list
    return copy.deepcopy(applied)


def remove(obj: Any, path: Path, at: Path = ()) -> None:
    """Take away a leaf, and what is empty around it."""
    if not path:
        return
    part, rest = path[0], path[1:]
    if isinstance(part, tuple) and isinstance(obj, list):
        keys = keys_of(at) or ()
        for item in list(obj):
            if tuple(item.get(key) for key in keys) == part:
                if rest[0] not in keys:
                    remove(item, rest, (*at, part))
                # Only its keys are left: nobody wants the item any more.
                if all(name in keys for name in item):
                    obj.remove(item)
    elif isinstance(obj, dict) and part in obj:
        if rest:
            remove(obj[part], rest, (*at, part))
            if obj[part] in ({}, []):
                del obj[part]
        else:
            del obj[part]


def merge_patch(live: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged
