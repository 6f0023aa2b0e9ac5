"""The identity of a resource's pods: it may do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multimodal_operator.kinds import SERVICE_ACCOUNT
from multimodal_operator.render.common import child, child_labels

if TYPE_CHECKING:
    from multimodal_operator.kinds import Json
    from multimodal_operator.want import Wanted


def service_account(want: Wanted) -> Json:
    """Give an account without rights and without a mounted token."""
    account = child(SERVICE_ACCOUNT, want, want.name, child_labels(want, "runtime"))
    return {**account, "automountServiceAccountToken": False}
