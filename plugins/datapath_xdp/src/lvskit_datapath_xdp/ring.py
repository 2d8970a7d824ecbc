"""The memory of one service's ring, which the program looks up and Python writes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.layout import RingKind
from lvskit_datapath_xdp.loader import Map, MapFlags, MapSpec, MapType

_SPEC: Final = MapSpec("ring", MapType.ARRAY, 4, layout.RING_SIZE, 1, MapFlags.MMAPABLE)
_PLACED, _SKIPPED, _CURRENT = 0, 1, 4  # words of 64 bits, and one of 32
_WORD: Final = 0xFFFFFFFFFFFFFFFF


class RingMemory:
    """A ring without places; `map` is what the map ``rings`` takes.

    It counts turns for as long as it lives, through all changes: those that the program has taken,
    and those that `skip` has.
    """

    def __init__(self) -> None:
        self.map = Map.create(_SPEC)
        self._memory = self.map.mmap()
        self._words = self._memory[: layout.RING_SERVERS].cast("Q")
        self._halves = self._memory[: layout.RING_SERVERS].cast("I")
        self._servers = self._memory[layout.RING_SERVERS : layout.RING_SIZE].cast("H")

    def write(self, servers: Sequence[int], kind: RingKind, *, port: bool, first: int) -> None:
        """Let these places hold from now on.

        Args:
            servers: their ids; 0 = Python decides. With none, Python decides on all.
            kind, port: how a place is found.
            first: the turn of the first place.
        """
        unused = 1 - self._halves[_CURRENT]
        start = unused * layout.RING_CAPACITY
        self._servers[start : start + len(servers)] = memoryview(array("H", servers))
        place = layout.RING_HEAD.size + unused * layout.PLACES.size
        layout.PLACES.pack_into(self._memory, place, first & _WORD, len(servers), kind, port)
        self._halves[_CURRENT] = unused

    def skip(self, turns: int) -> None:
        """Take turns that the program must not take; fewer than 0 = give some back."""
        self._words[_SKIPPED] = self._words[_SKIPPED] + turns & _WORD

    @property
    def turns(self) -> int:
        """How many have been taken."""
        return self._words[_PLACED] + self._words[_SKIPPED] & _WORD

    def close(self) -> None:
        """Let go of it; the program keeps what it has."""
        for view in (self._words, self._halves, self._servers, self._memory):
            view.release()
        self.map.close()
