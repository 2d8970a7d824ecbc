"""Give up what a process may do and no longer needs: Linux capabilities, by the standard library.

Source: capabilities(7), capset(2), and prctl(2) for PR_SET_NO_NEW_PRIVS.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lvskit.errors import DatapathError

_VERSION_3: Final = 0x20080522  # Linux include/uapi/linux/capability.h
_NO_NEW_PRIVS: Final = 38  # Linux include/uapi/linux/prctl.h
_WORD: Final = 0xFFFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)


def keep_only(capabilities: Iterable[int]) -> None:
    """Give up all capabilities but these, in this thread and those that it starts, for good.

    What it executes has none at all, unless it runs as root, and then no more than these. One that
    the process does not have is not gained.

    Raises:
        DatapathError: the kernel refuses.
    """
    status = Path("/proc/thread-self/status").read_text()
    held = int(status.partition("CapPrm:")[2].split()[0], 16)
    kept = held & sum(1 << number for number in capabilities)
    head = struct.pack("<Ii", _VERSION_3, 0)
    # Effective, permitted, inheritable; the lower halves and then the upper ones.
    low, high = kept & _WORD, kept >> 32
    sets = struct.pack("<6I", low, low, 0, high, high, 0)
    if _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or _libc.capset(head, sets):
        text = os.strerror(ctypes.get_errno())
        raise DatapathError(f"cannot give up capabilities: {text}")
