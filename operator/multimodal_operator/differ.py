"""Does a stored object still hold what was rendered? Only when it does not is anything written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from multimodal_operator import quantity
from multimodal_operator.snapshot import APPLIED

if TYPE_CHECKING:
    from multimodal_operator.kinds import Json

_AMOUNTS: Final = frozenset({"resources", "sizeLimit"})
"""Fields below which strings are amounts."""


def must_apply(rendered: Json, stored: Json | None) -> bool:
    """Tell whether applying `rendered` would change `stored`.

    The digest in the annotation shows that the wish changed (a field that is no longer rendered leaves no other trace);
    the comparison shows that somebody changed the object.
    """
    if stored is None or _digest(rendered) != _digest(stored):
        return True
    return not holds(rendered, stored)


def holds(part: object, whole: object, *, amounts: bool = False) -> bool:
    """Tell whether `whole` has everything that `part` has; it may have more, such as defaults and the status."""
    if isinstance(part, dict):
        if not isinstance(whole, dict):
            return not part and whole is None
        return all(holds(value, whole.get(key), amounts=amounts or key in _AMOUNTS) for key, value in part.items())
    if isinstance(part, list):
        return _holds_list(part, whole or [], amounts=amounts)
    if amounts and isinstance(part, str) and isinstance(whole, str):
        return part == whole or (quantity.parse(part) is not None and quantity.parse(part) == quantity.parse(whole))
    # The API server leaves out what is false, zero or empty.
    return bool(part == whole) or (whole is None and not part)


def _holds_list(part: list[Any], whole: object, *, amounts: bool) -> bool:
    if not isinstance(whole, list):
        return False
    if all(isinstance(item, dict) and "name" in item for item in part):
        named = {item.get("name"): item for item in whole if isinstance(item, dict)}
        return all(item["name"] in named and holds(item, named[item["name"]], amounts=amounts) for item in part)
    return len(part) == len(whole) and all(
        holds(mine, theirs, amounts=amounts) for mine, theirs in zip(part, whole, strict=True)
    )


def _digest(obj: Json) -> str | None:
    annotations: Json = obj["metadata"].get("annotations") or {}
    digest: str | None = annotations.get(APPLIED)
    return digest
