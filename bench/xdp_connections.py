"""What a new connection costs through Python: the part "connections" of ``bench/xdp.py``.

The program in the kernel sees the first packets of connections, and then the bridge takes what the
program wrote down: the director decides and counts, the connection gets its slot, the packet leaves
by a cable whose end throws it away. CPU time of this process alone; what the program took is not in
it. Beside it the same where slots are written to an LRU_HASH, those of a batch by one call of the
kernel, as nobody can write into its memory. Without a director, each record is read, gets a slot,
and is sent, to one server. Of a scheduler with a ring there is also what the director's bookkeeping
takes for connections that the program has placed.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lvskit_datapath_xdp.bridge import Bridge
from lvskit_datapath_xdp.engine import Engine
from lvskit_datapath_xdp.frames import FrameSender
from lvskit_datapath_xdp.layout import MISS4, RECORD, RECORD_LENGTH, Reason
from lvskit_datapath_xdp.loader import Map, MapSpec, MapType, RingBuffer
from lvskit_datapath_xdp.neighbours import Hop
from lvskit_datapath_xdp.options import XdpOptions
from lvskit_datapath_xdp.rings import Rings
from lvskit_datapath_xdp.servers import Servers
from lvskit_datapath_xdp.services import Services
from lvskit_datapath_xdp.slots import Slots4, Slots6
from xdp_table import NEAR, Row, Scale, apart, cable

from lvskit import TCP, Director, Route, ServerSettings, ServiceKey, ServiceSettings, load_plugins
from lvskit.control import collector
from lvskit.datapath.memory import stack

VIP, HERE = bytes([192, 168, 1, 176]), bytes([192, 168, 1, 175])
SERVERS = 16
WLC_A_SECOND = 150_000.0  # at least
_UNIT = "connections per CPU second"
_ETHERNET = NEAR + bytes(6) + b"\x08\x00"
_AT_ONCE = 20_000  # records in the ring
_BATCH = 256
_HOP = bytes.fromhex("020000000001020000000002")


class World(NamedTuple):
    """The program with its maps, a director, and the bridge between them."""

    engine: Engine
    director: Director
    bridge: Bridge
    slots: Slots4
    ring: RingBuffer
    rings: Rings


class HashSlots(Slots4):
    """Writes slots to an LRU_HASH, many at once, in the place of memory."""

    def __init__(self, map_: Map, seed: Engine, size: int) -> None:
        super().__init__(map_, seed)
        self._table = Map.create(MapSpec("lru", MapType.LRU_HASH, 8, 8, max(2 * size, 1024)))
        self._keys, self._values, self._number = array("Q"), array("Q"), 0

    def insert(self, one: int, other: int, key: int, binding: int, seen: int) -> int:
        """Note what is to be written; each gets a number of its own."""
        self._keys.append(key)
        self._values.append(binding | seen << 32)
        self._number += 1
        return self._number

    def flush(self) -> None:
        """Write it."""
        if self._keys:
            self._table.update_batch(self._keys.tobytes(), self._values.tobytes())
            self._keys, self._values = array("Q"), array("Q")


def measure(scale: Scale) -> Iterator[Row]:
    """Yield the rows."""
    count = scale.opened
    yield Row("new, no director", count, _UNIT, *(best(scale, bare, lru) for lru in (False, True)))
    for name, least in (("wlc", WLC_A_SECOND), ("rr", None)):
        ours, other = (best(scale, bridged, lru, name) for lru in (False, True))
        yield Row(f"new, by {name} in Python", count, _UNIT, ours, other, at_least=least)
    yield Row("new, by rr in the kernel", count, _UNIT, best(scale, placed))


def best(scale: Scale, measure: Callable[..., float], *arguments: object) -> float:
    """Return the most of several times."""
    return max(apart(measure, scale.opened, *arguments) for _ in range(scale.turns))


def world(scheduler: str, size: int, lru: bool = False) -> World:
    """Return a new one, in a network of its own, with a cable whose other end takes nothing."""
    cable("sink", "end")
    route, now = Route(HERE, 1500), time.monotonic()
    director = Director(load_plugins(), lambda address: route, size=size, now=now)
    key = ServiceKey.of(TCP, VIP, 80)
    director.add_service(key, ServiceSettings(scheduler=scheduler))
    for number in range(SERVERS):
        address = bytes([192, 168, 1, 1 + number])
        director.add_server(key, address, None, ServerSettings(weight=1 + number % 3))
    engine = Engine(XdpOptions(interface="sink", slots6=8, pins=""), size)
    maps = engine.maps
    table = maps["connections4"]
    slots = HashSlots(table, engine, size) if lru else Slots4(table, engine)
    services = Services(maps["services"], lambda address: True)
    hop = Hop(engine.ifindex, _HOP)
    servers = Servers(
        maps["servers"], maps["server_counters"], lambda address: hop, lambda ifindex: True
    )
    services.update(director.services)
    servers.update([s for service in director.services for s in service.servers], [])
    ring = RingBuffer(maps["misses"])
    clock = engine.clock(time.monotonic)
    rings = Rings(maps["rings"], services, servers, director.table)
    both = {4: slots, 6: Slots6(maps["connections6"], engine)}
    bridge = Bridge(
        director, time.monotonic, clock, ring, both, services, servers, rings, lambda *_: False
    )
    bridge.watch()
    return World(engine, director, bridge, slots, ring, rings)


def flood(made: World, numbers: range, flags: int = stack.SYN) -> None:
    """Have the program see a packet of each of many connections."""
    program = made.engine._loaded.programs["lvskit"]
    for number in numbers:
        client = (bytes([10, *number.to_bytes(3, "big")]), 1024 + number % 50000)
        program.test_run(_ETHERNET + stack.tcp(client, (VIP, 80), flags, 1, 0))


def measured(made: World, count: int, take: Callable[[], bool]) -> float:
    """Return connections per CPU second."""
    slots, spent = made.slots, 0.0
    flush = slots.flush if isinstance(slots, HashSlots) else lambda: None
    collector.settle()  # as `lvskit run` does
    for start in range(0, count, _AT_ONCE):
        flood(made, range(start, min(start + _AT_ONCE, count)))
        began, more = time.process_time(), True
        while more:
            more = take()
            flush()
        spent += time.process_time() - began
    return count / spent


def bridged(count: int, lru: bool, scheduler: str) -> float:
    """Return connections per CPU second through a scheduler and the director's bookkeeping."""
    made = world(scheduler, count, lru)
    rate = measured(made, count, made.bridge.read)
    assert len(made.director.table) == count, len(made.director.table)
    assert not made.engine.reason(Reason.PLACED)
    assert sum(1 for _ in made.slots.known()) >= count * 0.999
    return rate


def placed(count: int) -> float:
    """Return the same of connections that the program has placed by a scheduler's ring."""
    made = world("rr", count * 2)  # a table that fills up takes the ring away
    made.rings.update(server for each in made.director.services for server in each.servers)
    made.bridge.watch()
    rate = measured(made, count, made.bridge.read)
    assert made.engine.reason(Reason.PLACED) == count
    assert len(made.director.table) == count, len(made.director.table)
    return rate


def bare(count: int, lru: bool) -> float:
    """Return the same without a director."""
    made = world("rr", count, lru)
    slots, sender = made.slots, FrameSender(made.engine.ifindex)
    ring, head = made.ring, _HOP + _ETHERNET[12:] + bytes(20)
    numbers: dict[bytes, int] = {}

    def take() -> bool:
        offsets = ring.offsets(_BATCH)
        for at in offsets:
            _, seen, one, other, key = MISS4.unpack_from(ring.memory, at)
            start = at + RECORD.size
            packet = ring.memory[start : start + ring.halves[at + RECORD_LENGTH >> 1]]
            numbers[packet[12:24]] = slots.insert(one, other, key, 1, seen)
            sender.waiting.append(head + packet)
        sender.flush()
        ring.release()
        return bool(offsets)

    rate = measured(made, count, take)
    assert len(numbers) == count
    return rate
