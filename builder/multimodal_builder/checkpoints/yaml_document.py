"""YAML as data: no tag makes an object, no nesting or alias makes a small file large."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import yaml

from multimodal_builder.checkpoints.errors import shown, unreadable, unsafe

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.window import Window

LIMIT: Final = 2**20
"""Bytes. Real files have some ten thousand."""
MAX_DEPTH: Final = 64
"""Of nested keys and lists. libyaml's loader ends the process when there are too many."""
MAX_VALUES: Final = 200_000
"""With all aliases written out: what a small file refers to again and again has no end."""

STANDARD: Final = "tag:yaml.org,2002:"
TUPLE: Final = f"{STANDARD}python/tuple"
"""Writers of Python values use it for what else is a list."""

# libyaml's parser is ten times as fast; PyYAML without it has only its own.
_BASE: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LOADER: Final[Any] = type("_Loader", (_BASE,), {})
_LOADER.add_constructor(TUPLE, lambda loader, node: loader.construct_sequence(node, deep=True))


def read_yaml(member: Window) -> dict[str, Any]:
    """Read a file of keys and values.

    Raises:
        ProductError: it is no YAML, not one of keys, larger than reasonable, or asks for objects.
    """
    data = member.read(LIMIT)
    try:
        _scan(data, member.at)
        document = yaml.load(data, Loader=_LOADER)  # noqa: S506 (a safe loader, see above)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, RecursionError) as error:
        raise unreadable(member.at, f"not YAML: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise unreadable(member.at, "the file holds no keys")
    _check_size(document, member.at)
    return document


def _scan(data: bytes, at: str) -> None:
    """Look at the events, one after the other, before anything is made of them."""
    depth = 0
    for event in yaml.parse(data, Loader=_BASE):
        tag = getattr(event, "tag", None)
        if tag not in {None, TUPLE} and (not tag.startswith(STANDARD) or "/" in tag):
            raise unsafe(_place(event, at), f"the tag {shown(tag)} asks for an object, and settings are data")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise unsafe(_place(event, at), f"more than {MAX_DEPTH} levels of nested values")


def _place(event: Any, at: str) -> str:  # noqa: ANN401 (of either parser)
    return f"{at}: line {event.start_mark.line + 1}"


def _check_size(document: object, at: str) -> None:
    """Count all values as they would be written out."""
    waiting = [document]
    for _ in range(MAX_VALUES):
        if not waiting:
            return
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, set)):
            waiting += value
    raise unsafe(at, f"more than {MAX_VALUES} values when all aliases are written out")
