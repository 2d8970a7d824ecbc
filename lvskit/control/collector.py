"""How the daemon has Python's garbage collector treat connections."""

from __future__ import annotations

import gc
from typing import Final

_YOUNG: Final = 50_000  # new objects, less those that have gone, between two looks at them
_MIDDLE: Final = 20
_ALL: Final = 1000


def settle() -> None:
    """Have the collector look seldom at what lasts; to be called once all is set up.

    A connection is freed with the last reference to it, and needs no collector, which by default
    looks at every connection there is each time that their number has grown by a quarter. That is
    a tenth of what opening one takes. Rings of objects that nothing refers to are still found.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _ALL)
