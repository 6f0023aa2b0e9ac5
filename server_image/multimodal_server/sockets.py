"""Several parts through a socket at once. It lies beside `triton_calls.py` in Triton's own process, too."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

_MAX_TOGETHER: Final = os.sysconf("SC_IOV_MAX")


def send_together(connection: socket.socket, parts: Sequence[bytes | memoryview]) -> None:
    """Send several parts; as many as the kernel takes go together, so that the other end wakes once.

    Args:
        connection: blocking.
        parts: of single bytes.

    Raises:
        OSError: the other end is gone.
    """
    sent = connection.sendmsg(parts[:_MAX_TOGETHER])
    for part in parts:
        if rest := memoryview(part)[sent:]:
            connection.sendall(rest)
        sent = max(0, sent - len(part))
