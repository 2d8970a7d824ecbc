"""What `lvskit realserver up` leaves for `down`: refused with a reason, or read as it was."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from lvskit import ConfigError
from lvskit.hostsetup.state import State

_HOME = tempfile.mkdtemp(prefix="lvskit-fuzz-")
atexit.register(shutil.rmtree, _HOME)
_PATH = Path(_HOME, "state.json")


def check(data: bytes) -> None:
    _PATH.write_bytes(data)
    try:
        state = State.load(_PATH)
    except ConfigError:
        return
    if state.steps:
        state.save(_PATH)
        assert State.load(_PATH) == state
