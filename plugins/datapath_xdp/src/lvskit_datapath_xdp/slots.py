"""The slots of known connections in the program's memory: who has which, and how to write them.

The program reads a slot while it is written here, so a slot is claimed with `BUSY`, its value is
written, and then its key: no packet ever meets a new key with an old value. Python writes plain
words: where the program claims the same slot in the same moment, which needs a ring's connection
in the same bucket within 0.1 µs, both lose it, and get others when the program's record is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Any, Final, Protocol

from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.layout import SlotFlag
from lvskit_datapath_xdp.loader import Map

NO_PLACE: Final = -1
_BUSY: Final = layout.BUSY
_BUCKET: Final = layout.SLOTS_PER_BUCKET
_AT_ONCE: Final = 1024
_KEY4: Final = 12  # bytes of an IPv4 connection's key: `Flow.key`

Known = Any
"""A connection of the director, as the core has it."""


def slots_of(connection: Known, slots: Mapping[int, Slots]) -> Slots:
    """Return the slots, by IP version, that a connection belongs to."""
    return slots[4 if len(connection.key) == _KEY4 else 6]


class Seed(Protocol):
    """What the program's hashes depend on."""

    @property
    def seed(self) -> int:
        """The constant ``hash_seed``."""

    @property
    def multiplier(self) -> int:
        """The constant ``hash_multiplier``."""


class Slots:
    """The slots of one IP version.

    Args:
        map_: ``connections4`` or ``connections6``.
        seed: as the program has it.

    Attributes:
        owners: connections by the number of their slot, which is their `place`; None elsewhere.
        unplaced: connections that found no place, since the start.
    """

    _fields: Struct
    _state: int  # where a slot has it, in bytes; its flags follow
    _service: int
    _seen: int
    _size: int

    def __init__(self, map_: Map, seed: Seed) -> None:
        self._memory = map_.mmap().cast("B")
        self._mask = map_.spec.max_entries - 1
        self._seed = seed
        # How many slots of each bucket are taken, as far as is known here.
        self._taken = bytearray(map_.spec.max_entries)
        self.owners: list[Known | None] = [None] * (map_.spec.max_entries * _BUCKET)
        self.unplaced = 0

    def key(self, address: bytes, port: bytes, service: int) -> Any:
        """Return what `insert` and others take: whose connection it is.

        Args:
            address: the client's; for IPv4 the first 4 bytes count.
            port: the client's, as packets have it.
            service: its id.
        """
        raise NotImplementedError

    def insert(self, one: int, other: int, key: Any, binding: int, seen: int) -> int:
        """Write a slot into one of two buckets; return its number, `NO_PLACE` where both are full.

        Args:
            one, other: the buckets.
            key: of the connection.
            binding: server id, state and flags, read as one number.
            seen: the time of its last packet.
        """
        raise NotImplementedError

    def buckets(self, key: Any) -> tuple[int, int]:
        """Return the two buckets that a connection may be in."""
        mixed = self._hash(key)
        return mixed >> 32 & self._mask, mixed & self._mask

    def _hash(self, key: Any) -> int:
        raise NotImplementedError

    def place(
        self, connection: Known, one: int, other: int, key: Any, binding: int, seen: int
    ) -> None:
        """Give a connection a slot, unless it has one; the arguments are those of `insert`."""
        number = connection.place
        if number is not None:
            if self.holds(number, key):
                return
            self.forget(connection)  # the program took it at the same time
        number = self.insert(one, other, key, binding, seen)
        if number != NO_PLACE:
            self.owners[number] = connection
            connection.place = number

    def known(self) -> Iterator[Known]:
        """Yield the connections that have slots."""
        return (connection for connection in self.owners if connection is not None)

    def contents(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Yield slots by number, as `layout.SLOT4` or `layout.SLOT6`; not all that are free."""
        memory, step = self._memory, _AT_ONCE * self._size
        nothing = bytes(step)
        for start in range(0, len(memory), step):
            part = memory[start : start + step]
            if part != nothing[: len(part)]:
                yield from enumerate(self._fields.iter_unpack(part), start // self._size)

    def services(self) -> set[int]:
        """Return the ids of services that slots have in their keys; it takes a while."""
        words = self._memory.cast("H")
        with words, words[self._service // 2 :: self._size // 2] as ids:
            return set(ids)

    def own(self, number: int, connection: Known) -> None:
        """Note whose a slot is."""
        self.owners[number] = connection
        connection.place = number

    def placed(self, number: int, connection: Known) -> None:
        """Note whose a slot is that the program has written."""
        self._taken[number // _BUCKET] = min(self._taken[number // _BUCKET] + 1, _BUCKET)
        self.own(number, connection)

    def adopt(self, owners: dict[int, Known]) -> None:
        """Note whose the slots are that a former daemon or the program has written."""
        taken = self._taken
        for number, connection in owners.items():
            taken[number // _BUCKET] += 1
            self.own(number, connection)

    def busy(self, number: int) -> bool:
        """Whether a slot is being written."""
        raise NotImplementedError

    def holds(self, number: int, key: Any) -> bool:
        """Whether a slot is that of a connection, and not of one that the program put there."""
        raise NotImplementedError

    def forget(self, connection: Known) -> None:
        """Note that a connection has no slot any more."""
        number, connection.place = connection.place, None
        self.owners[number] = None
        self._taken[number // _BUCKET] -= 1

    def release(self, connection: Known) -> None:
        """Free the slot of a connection, if it has one."""
        number = connection.place
        if number is not None:
            self.forget(connection)
            self.clear(number)

    def clear(self, number: int) -> None:
        """Free a slot in the program's memory."""
        raise NotImplementedError

    def set_state(self, number: int, state: int) -> None:
        """Let the program go on from another state."""
        self._memory[number * self._size + self._state] = state

    def tell(self, number: int) -> None:
        """Have the program tell of the next packet."""
        self._memory[number * self._size + self._state + 1] |= SlotFlag.TELL

    def tells(self, number: int) -> bool:
        """Whether it is still to tell of that: there has been none since."""
        return bool(self._memory[number * self._size + self._state + 1] & SlotFlag.TELL)

    def counted(self, number: int) -> int:
        """Return how many packets the program has forwarded since the last call; it counts few."""
        at = number * self._size + self._state + 1
        flags = self._memory[at]
        self._memory[at] = flags % SlotFlag.ONE
        return flags // SlotFlag.ONE

    def seen(self, number: int) -> int:
        """Return when the program saw a packet last, in its units."""
        raise NotImplementedError

    def date(self, number: int, seen: int) -> None:
        """Write when the program saw a packet last."""
        start = number * self._size + self._seen
        self._memory[start : start + 4] = seen.to_bytes(4, "little")

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.release()


class Slots4(Slots):
    """IPv4: two words of 64 bits, the key and the value."""

    _fields, _size = layout.SLOT4, layout.SLOT4.size
    _service, _state, _seen = 6, 10, 12

    def __init__(self, map_: Map, seed: Seed) -> None:
        super().__init__(map_, seed)
        self._words = self._memory.cast("Q")

    def key(self, address: bytes, port: bytes, service: int) -> int:
        """Return the key as one number."""
        return int.from_bytes(address[:4] + port, "little") | service << 48

    def insert(self, one: int, other: int, key: int, binding: int, seen: int) -> int:
        """Write a slot."""
        words, taken = self._words, self._taken
        bucket = one if taken[one] <= taken[other] else other
        at = bucket * 8 + taken[bucket] * 2  # as long as none has been given back
        if taken[bucket] >= _BUCKET or words[at]:
            at = self._search(bucket, one + other - bucket)
            if at < 0:
                self.unplaced += 1
                return NO_PLACE
            bucket = at >> 3
        words[at] = _BUSY
        words[at + 1] = binding | seen << 32
        words[at] = key
        taken[bucket] += 1
        return at >> 1

    def _search(self, *buckets: int) -> int:
        """Return where the words of the first free slot are; less than 0 where there is none."""
        for bucket in buckets:
            for at in range(bucket * 8, bucket * 8 + 8, 2):
                if not self._words[at]:
                    return at
        return -1

    def _hash(self, key: int) -> int:
        return layout.hash4(key, self._seed.seed, self._seed.multiplier)

    def clear(self, number: int) -> None:
        """Free a slot in the program's memory."""
        self._words[number * 2] = 0

    def busy(self, number: int) -> bool:
        """Whether a slot is being written."""
        return self._words[number * 2] == layout.BUSY

    def holds(self, number: int, key: int) -> bool:
        """Whether a slot is that of a connection."""
        return self._words[number * 2] == key

    def seen(self, number: int) -> int:
        """Return when the program saw a packet last, in its units."""
        return self._words[number * 2 + 1] >> 32

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        super().close()


class Slots6(Slots):
    """IPv6: eight words of 32 bits: four of address, the key, the binding, the time, nothing."""

    _fields, _size = layout.SLOT6, layout.SLOT6.size
    _service, _state, _seen = 18, 22, 24

    def __init__(self, map_: Map, seed: Seed) -> None:
        super().__init__(map_, seed)
        self._words = self._memory.cast("I")

    def key(self, address: bytes, port: bytes, service: int) -> tuple[bytes, int]:
        """Return the address, and the rest as one number."""
        return address, int.from_bytes(port, "little") | service << 16

    def insert(self, one: int, other: int, key: tuple[bytes, int], binding: int, seen: int) -> int:
        """Write a slot."""
        words, taken = self._words, self._taken
        for bucket in (one, other) if taken[one] <= taken[other] else (other, one):
            for number in range(bucket * _BUCKET, (bucket + 1) * _BUCKET):
                at = number * 8
                if not words[at + 4]:
                    words[at + 4] = layout.BUSY
                    self._memory[number * 32 : number * 32 + 16] = key[0]
                    words[at + 5], words[at + 6] = binding, seen
                    words[at + 4] = key[1]
                    taken[bucket] += 1
                    return number
        self.unplaced += 1
        return NO_PLACE

    def _hash(self, key: tuple[bytes, int]) -> int:
        address, client = key
        high, low = int.from_bytes(address[:8], "little"), int.from_bytes(address[8:], "little")
        return layout.hash6(high, low, client, self._seed.seed, self._seed.multiplier)

    def clear(self, number: int) -> None:
        """Free a slot in the program's memory."""
        self._words[number * 8 + 4] = 0

    def busy(self, number: int) -> bool:
        """Whether a slot is being written."""
        return self._words[number * 8 + 4] == layout.BUSY

    def holds(self, number: int, key: tuple[bytes, int]) -> bool:
        """Whether a slot is that of a connection."""
        start = number * self._size
        return self._words[number * 8 + 4] == key[1] and self._memory[start : start + 16] == key[0]

    def seen(self, number: int) -> int:
        """Return when the program saw a packet last, in its units."""
        return self._words[number * 8 + 6]

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        super().close()
