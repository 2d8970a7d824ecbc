"""Where the control socket is, for the daemon and for everyone who calls it."""

from __future__ import annotations

import os
from typing import Final

SOCKET_VARIABLE: Final = "LVSKIT_SOCKET"


def default_socket() -> str:
    """Return the socket's path where nobody names one.

    ``$LVSKIT_SOCKET``; without it ``/run/lvskit/lvskit.sock`` for root, and for others
    ``lvskit.sock`` in ``$XDG_RUNTIME_DIR`` (``/run/user/UID`` where that is not set).
    """
    named = os.environ.get(SOCKET_VARIABLE)
    if named:
        return named
    uid = os.geteuid()
    if uid == 0:
        return "/run/lvskit/lvskit.sock"
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}", "lvskit.sock")
