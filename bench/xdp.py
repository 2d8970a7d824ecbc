"""What a packet costs in the XDP program: ``python bench/xdp.py``, as root.

Prints nanoseconds per packet of 64 to 74 bytes under BPF_PROG_TEST_RUN, counters on, what the
harness itself takes subtracted: packets of known connections at several numbers of flows, in random
order; and new connections, placed by a table scheduler's ring or told to Python by a record, in an
empty table for so many flows. Beside each: the same program with a plain LRU_HASH in the place of
its table, in the same run.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.loader import BpfObject, Loaded, RingBuffer
from lvskit_datapath_xdp.ring import RingMemory

OBJECTS = Path(__file__).parent / "xdp"
VIPS = {4: bytes([192, 0, 2, 1]), 6: bytes.fromhex("20010db8") + bytes(11) + b"\1"}
DIRECTOR, SERVERS, SERVICE, PORT = bytes([10, 1, 0, 1]), 16, 1, 80
LOOPBACK = 1  # where test runs come from
REPEAT, NEW = 1_000_000, 25_000
ROOMS = (25_000, 1_000_000)  # of the tables that new connections are put into
WITHOUT = 1e-4  # of the flows at most may find both buckets full
ACK, SYN = 0x10, 0x02


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--flows", type=int, nargs="+", default=[1, 1_000, 10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--rounds", type=int, default=5, help="the best of how many")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    rows = list(measure(arguments.flows, arguments.rounds))
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'ns per packet':24} {'flows':>9} {'buckets':>9} {'LRU_HASH':>9}")
    for row in rows:
        print(
            f"{row['what']:24} {row['flows']:9} {row['buckets_ns']:9.0f} {row['lru_hash_ns']:9.0f}"
        )


def measure(counts: list[int], rounds: int) -> Iterator[dict[str, str | int | float]]:
    """Yield the rows of the table."""
    for version in (4, 6):
        for count in counts:
            costs = [hit(kind, version, count, rounds) for kind in ("buckets", "lru")]
            yield row(f"hit, IPv{version}", count, costs)
    for what, program, ring in (
        ("new, placed by a ring", "placed4", True),
        ("new, record to Python", "missed4", False),
    ):
        for room in ROOMS:
            costs = [new(kind, program, ring, room, rounds) for kind in ("buckets", "lru")]
            yield row(what, room, costs)


def row(what: str, flows: int, costs: list[float]) -> dict[str, str | int | float]:
    """Return one row."""
    return {"what": what, "flows": flows, "buckets_ns": costs[0], "lru_hash_ns": costs[1]}


def hit(kind: str, version: int, flows: int, rounds: int) -> float:
    """Return what a packet of one of `flows` known connections costs."""
    with load(kind, version, flows) as loaded:
        programs, packet = loaded.programs, frame(version, ACK)
        programs[f"fill{version}"].test_run(packet, repeat=flows)
        unexpected = loaded.variable("unexpected").cast("Q")
        assert unexpected[0] <= flows * WITHOUT, "the table took not all flows"
        costs = []
        for _ in range(rounds):
            whole = programs[f"hit{version}"].test_run(packet, repeat=REPEAT).duration_ns
            empty = programs[f"wrapper{version}"].test_run(packet, repeat=REPEAT).duration_ns
            costs.append(whole - empty)
        assert unexpected[0] <= rounds * REPEAT * WITHOUT, "packets were not forwarded"
        assert loaded.maps["server_counters"].lookup_int(1), "nothing was counted"
        return min(costs)


def new(kind: str, program: str, ring: bool, room: int, rounds: int) -> float:
    """Return what the first packet of a new connection costs, in an empty table for `room`."""
    packet, costs = frame(4, SYN), []
    for _ in range(rounds):
        with load(kind, 4, max(room, NEW), ring) as loaded:
            whole = loaded.programs[program].test_run(packet, repeat=NEW).duration_ns
            empty = loaded.programs["wrapper4"].test_run(packet, repeat=REPEAT).duration_ns
            costs.append(whole - empty)
            assert len(RingBuffer(loaded.maps["misses"]).offsets()) == NEW
            unexpected = loaded.variable("unexpected").cast("Q")
            assert unexpected[0] <= NEW * WITHOUT, "packets went another way"
    return min(costs)


def load(kind: str, version: int, flows: int, ring: bool = False) -> Loaded:
    """Load the harness around one of the two, with one service, its servers, and maybe a ring."""
    obj = BpfObject.read(OBJECTS / f"{kind}.bpf.o")
    obj.rodata["flows"] = flows
    obj.maps["connections4"].max_entries = obj.maps["connections6"].max_entries = 1
    table = obj.maps[f"connections{version}"]
    if kind == "buckets":  # half full
        table.max_entries = 1 << max((flows * 2 // layout.SLOTS_PER_BUCKET - 1).bit_length(), 0)
        obj.rodata[f"mask{version}"] = table.max_entries - 1
    else:  # its lists per CPU make it forget early
        table.max_entries = max(2 * flows, 1024)
    loaded = obj.load()
    key = layout.SERVICE_KEY.pack(VIPS[version], PORT.to_bytes(2, "big"), 6, version)
    loaded.maps["services"].update(key, layout.SERVICE.pack(SERVICE, 0))
    servers = loaded.maps["servers"].mmap()
    for number in range(1, SERVERS + 1):
        address = bytes([10, 1, 1, number])
        made = layout.server(DIRECTOR, address, bytes(12), LOOPBACK, 1500)
        start = number * layout.SERVER_SIZE
        servers[start : start + len(made)] = made
    if ring:
        memory = RingMemory()
        places = range(1, SERVERS + 1)
        memory.write(places, layout.RingKind.TURN, port=False, first=0)
        loaded.maps["rings"].update(SERVICE, memory.map)
    return loaded


def frame(version: int, flags: int) -> bytes:
    """Return a frame to the service; the harness writes what differs between flows."""
    tcp = struct.pack("!HHIIBBHHH", 1024, PORT, 1, 1, 0x50, flags, 0, 0, 0)
    if version == 4:
        tcp += bytes(10)
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 50, 0, 0x4000, 64, 6, 0, bytes(4), VIPS[4])
        return bytes(12) + b"\x08\x00" + ip + tcp
    ip = struct.pack("!IHBB16s16s", 6 << 28, 20, 6, 64, b"\xfd" + bytes(15), VIPS[6])
    return bytes(12) + b"\x86\xdd" + ip + tcp


if __name__ == "__main__":
    main()
