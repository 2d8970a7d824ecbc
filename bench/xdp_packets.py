"""What a packet costs in the XDP program: the part "packets" of ``bench/xdp.py``.

Nanoseconds per packet of 64 to 74 bytes under BPF_PROG_TEST_RUN, counters on, what the harness
itself takes subtracted, of each the least of several times: packets of known connections at
several numbers of flows, in random order; and new connections, placed by a table scheduler's ring
or told to Python by a record, in an empty table for so many flows. Beside each: the same program
with a plain LRU_HASH in the place of its table, in the same run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.loader import BpfObject, Loaded, RingBuffer
from lvskit_datapath_xdp.ring import RingMemory
from xdp_table import Row, Scale

OBJECTS = Path(__file__).parent / "xdp"
IPV4, IPV6 = 4, 6
VIPS = {IPV4: bytes([192, 0, 2, 1]), IPV6: bytes.fromhex("20010db8") + bytes(11) + b"\1"}
DIRECTOR, SERVERS, SERVICE, PORT = bytes([10, 1, 0, 1]), 16, 1, 80
LOOPBACK = 1  # where test runs come from
KINDS = ("buckets", "lru")
WITHOUT = 1e-4  # of the flows at most may find both buckets full
ACK, SYN = 0x10, 0x02

# What a hit may take, by the number of flows, and a connection that a ring places.
HIT_NS = {1: 52.0, 1_000: 56.0, 100_000: 212.0, 1_000_000: 265.0}
IPV6_TIMES = 1.6
PLACED_NS = 230.0
_UNIT = "ns per packet"


def measure(scale: Scale) -> Iterator[Row]:
    """Yield the rows."""
    found = {}
    for count in scale.flows:
        ours, other = (hit(kind, IPV4, count, scale) for kind in KINDS)
        found[count] = ours
        yield Row("known, IPv4", count, _UNIT, ours, other, at_most=HIT_NS.get(count))
    for count in scale.flows:
        ours, other = (hit(kind, IPV6, count, scale) for kind in KINDS)
        yield Row("known, IPv6", count, _UNIT, ours, other, at_most=IPV6_TIMES * found[count])
    for what, program, ring, most in (
        ("new, placed by a ring", "placed4", True, PLACED_NS),
        ("new, record to Python", "missed4", False, None),
    ):
        for room in scale.rooms:
            ours, other = (new(kind, program, ring, room, scale) for kind in KINDS)
            yield Row(what, room, _UNIT, ours, other, at_most=most)


def hit(kind: str, version: int, flows: int, scale: Scale) -> float:
    """Return what a packet of one of `flows` known connections costs."""
    repeat, whole, empty = scale.repeat, [], []
    with load(kind, version, flows) as loaded:
        programs, packet = loaded.programs, frame(version, ACK)
        programs[f"fill{version}"].test_run(packet, repeat=flows)
        unexpected = loaded.variable("unexpected").cast("Q")
        assert unexpected[0] <= flows * WITHOUT, "the table took not all flows"
        for _ in range(scale.rounds):
            whole.append(programs[f"hit{version}"].test_run(packet, repeat=repeat).duration_ns)
            empty.append(programs[f"wrapper{version}"].test_run(packet, repeat=repeat).duration_ns)
        assert unexpected[0] <= scale.rounds * repeat * WITHOUT, "packets were not forwarded"
        assert loaded.maps["server_counters"].lookup_int(1), "nothing was counted"
        return min(whole) - min(empty)


def new(kind: str, program: str, ring: bool, room: int, scale: Scale) -> float:
    """Return what the first packet of a new connection costs, in an empty table for `room`."""
    packet, whole, empty = frame(IPV4, SYN), [], []
    for _ in range(scale.rounds):
        with load(kind, IPV4, max(room, scale.new), ring=ring) as loaded:
            programs, repeat = loaded.programs, scale.repeat
            whole.append(programs[program].test_run(packet, repeat=scale.new).duration_ns)
            empty.append(programs["wrapper4"].test_run(packet, repeat=repeat).duration_ns)
            assert len(RingBuffer(loaded.maps["misses"]).offsets()) == scale.new
            unexpected = loaded.variable("unexpected").cast("Q")
            assert unexpected[0] <= scale.new * WITHOUT, "packets went another way"
    return min(whole) - min(empty)


def load(
    kind: str,
    version: int,
    flows: int,
    *,
    ring: bool = False,
    leave_by: int = LOOPBACK,
) -> Loaded:
    """Load the harness around one of the two, with one service, its servers, and maybe a ring.

    What is forwarded leaves by the interface `leave_by`.
    """
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
        made = layout.server(DIRECTOR, address, bytes(12), leave_by, 1500)
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
    if version == IPV4:
        tcp += bytes(10)
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 50, 0, 0x4000, 64, 6, 0, bytes(4), VIPS[IPV4])
        return bytes(12) + b"\x08\x00" + ip + tcp
    ip = struct.pack("!IHBB16s16s", 6 << 28, 20, 6, 64, b"\xfd" + bytes(15), VIPS[IPV6])
    return bytes(12) + b"\x86\xdd" + ip + tcp
