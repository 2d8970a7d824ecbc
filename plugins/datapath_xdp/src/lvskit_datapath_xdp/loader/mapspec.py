"""What a map is like: its kind, its sizes, its flags."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final


class MapType(IntEnum):
    """The kinds of map that are used: enum bpf_map_type of Linux include/uapi/linux/bpf.h."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    DEVMAP_HASH = 25
    RINGBUF = 27


PER_CPU: Final = {MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH}
# The kernel takes BTF for these alone, of the above: map_check_btf of their operations.
WITH_BTF: Final = {
    MapType.HASH,
    MapType.ARRAY,
    MapType.LRU_HASH,
    MapType.LPM_TRIE,
    *PER_CPU,
}


class MapFlags(IntFlag):
    """Flags of a map at its creation."""

    NO_PREALLOC = 1 << 0
    RDONLY_PROG = 1 << 7
    MMAPABLE = 1 << 10
    INNER_MAP = 1 << 12


@dataclass(slots=True)
class MapSpec:
    """A map as a program's source defines it; sizes in bytes. May be changed before the load.

    Attributes:
        inner: for a map of maps, what its maps are like.
        key_type, value_type: numbers of BTF types, 0 for none.
    """

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    inner: MapSpec | None = None
    key_type: int = 0
    value_type: int = 0
