"""What a new connection costs that a Python scheduler places, through the datapath xdp.

``python bench/xdp_connections.py`` (as root) lets the program in the kernel see the first packets
of connections, and then has the bridge take what the program wrote down: the director decides and
counts, the connection gets its slot, the packet leaves by a cable whose end throws it away. CPU
time of this process alone; what the program took is not in it. The ratio is to the same without a
director: each record is read, gets a slot, and is sent, to one server. Of a scheduler with a ring
there is also what the director's bookkeeping takes for connections that the program has placed.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import multiprocessing
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from lvskit_datapath_xdp.bridge import Bridge
from lvskit_datapath_xdp.engine import Engine
from lvskit_datapath_xdp.frames import FrameSender
from lvskit_datapath_xdp.layout import MISS4, RECORD, RECORD_LENGTH, Reason
from lvskit_datapath_xdp.loader import RingBuffer
from lvskit_datapath_xdp.neighbours import Hop
from lvskit_datapath_xdp.options import XdpOptions
from lvskit_datapath_xdp.rings import Rings
from lvskit_datapath_xdp.servers import Servers
from lvskit_datapath_xdp.services import Services
from lvskit_datapath_xdp.slots import Slots4, Slots6

from lvskit import TCP, Director, Route, ServerSettings, ServiceKey, ServiceSettings, load_plugins
from lvskit.control import collector
from lvskit.datapath.memory import stack

VIP, HERE = bytes([192, 168, 1, 176]), bytes([192, 168, 1, 175])
SERVERS = 16
_NEWNET = 0x40000000
_ETHERNET = bytes.fromhex("0200000000fe") + bytes(6) + b"\x08\x00"
_AT_ONCE = 20_000  # records in the ring
_HOP = bytes.fromhex("020000000001020000000002")


class World(NamedTuple):
    """The program with its maps, a director, and the bridge between them."""

    engine: Engine
    director: Director
    bridge: Bridge
    ring: RingBuffer
    rings: Rings


def interface() -> None:
    """Move into a network namespace with a cable whose other end takes nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEWNET):
        raise SystemExit("needs root: no network namespace can be made")
    for command in (
        "link add sink address 02:00:00:00:00:fe type veth peer name end",
        "link set sink up",
        "link set end up",
    ):
        subprocess.run(["ip", *command.split()], check=True)


def world(scheduler: str, size: int) -> World:
    """Return a new one."""
    route, now = Route(HERE, 1500), time.monotonic()
    director = Director(load_plugins(), lambda address: route, size=size, now=now)
    key = ServiceKey.of(TCP, VIP, 80)
    director.add_service(key, ServiceSettings(scheduler=scheduler))
    for number in range(SERVERS):
        address = bytes([192, 168, 1, 1 + number])
        director.add_server(key, address, None, ServerSettings(weight=1 + number % 3))
    engine = Engine(XdpOptions(interface="sink", slots6=8, pins=""), size)
    maps = engine.maps
    slots = {4: Slots4(maps["connections4"], engine), 6: Slots6(maps["connections6"], engine)}
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
    bridge = Bridge(
        director, time.monotonic, clock, ring, slots, services, servers, rings, lambda *_: False
    )
    bridge.watch()
    return World(engine, director, bridge, ring, rings)


def flood(made: World, start: int, count: int) -> None:
    """Have the program see the first packets of `count` connections."""
    program = made.engine._loaded.programs["lvskit"]
    for number in range(start, start + count):
        client = (bytes([10, *number.to_bytes(3, "big")]), 1024 + number % 50000)
        program.test_run(_ETHERNET + stack.tcp(client, (VIP, 80), stack.SYN, 1, 0))


def measured(made: World, count: int, take: Callable[[], object]) -> float:
    """Return connections per CPU second."""
    spent = 0.0
    for start in range(0, count, _AT_ONCE):
        flood(made, start, _AT_ONCE)
        began = time.process_time()
        while take():
            pass
        spent += time.process_time() - began
    return count / spent


def bridged(scheduler: str, count: int, placed: bool) -> float | None:
    """Return connections per CPU second through a scheduler and the director's bookkeeping.

    With `placed`, those that the program has placed by the scheduler's ring; None without one.
    """
    made = world(scheduler, count * 2)
    if placed:
        made.rings.update(server for each in made.director.services for server in each.servers)
        made.bridge.watch()
        if not made.rings.by_id:
            return None
    rate = measured(made, count, made.bridge.read)
    assert made.engine.reason(Reason.PLACED) == count * placed
    assert len(made.director.table) == count, len(made.director.table)
    assert sum(1 for slots in made.bridge._slots.values() for _ in slots.known()) >= count * 0.999
    return rate


def bare(count: int) -> float:
    """Return the same without a director."""
    made = world("rr", count)
    slots, sender = made.bridge._slots[4], FrameSender(made.engine.ifindex)
    ring, head = made.ring, _HOP + _ETHERNET[12:] + bytes(20)
    numbers: dict[bytes, int] = {}

    def take() -> bool:
        offsets = ring.offsets(256)
        for at in offsets:
            _, seen, one, other, key = MISS4.unpack_from(ring.memory, at)
            start = at + RECORD.size
            packet = bytes(ring.memory[start : start + ring.halves[at + RECORD_LENGTH >> 1]])
            numbers[packet[12:24]] = slots.insert(one, other, key, 1, seen)
            sender.waiting.append(head + packet)
        sender.flush()
        ring.release()
        return bool(offsets)

    return measured(made, count, take)


def apart(measure: Callable[..., Any], *arguments: object) -> Any:
    """Return a result from a process of its own, whose memory no other run has used."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(measure, *arguments).result()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200_000, help="connections")
    parser.add_argument("--schedulers", nargs="+", default=["wlc", "rr"])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    interface()
    collector.settle()  # as `lvskit run` does
    floor = apart(bare, arguments.count)
    found = {}
    for name, placed in itertools.product(arguments.schedulers, (False, True)):
        rate = apart(bridged, name, arguments.count, placed)
        if rate is not None:
            row = f"{name}, in the kernel" if placed else name
            found[row] = {"per_second": rate, "ratio": rate / floor}
    if arguments.json:
        print(json.dumps({"bare": floor, "servers": SERVERS, "schedulers": found}))
        return
    print(f"{'scheduler':>20} {'new connections/s':>18} {'ratio':>6}")
    print(f"{'(no director)':>20} {floor:18,.0f} {1:6.2f}")
    for name, row in found.items():
        print(f"{name:>20} {row['per_second']:18,.0f} {row['ratio']:6.2f}")


if __name__ == "__main__":
    main()
