"""The maps of the program in the kernel, byte by byte: what `bpf/layout.h` says, in Python.

Everything is little-endian, as the program is; addresses and ports are as packets have them, in
network order. A test compares sizes and offsets with those that the compiler wrote down.

Maps (name: kind, key → value):

- ``services``: HASH, `SERVICE_KEY` → `SERVICE`. Traffic to anything else is passed on (XDP_PASS).
- ``servers``: ARRAY in memory (`Map.mmap`), server id → `SERVER`; ids begin at 1, 0 is no server.
- ``connections4``, ``connections6``: ARRAY in memory, bucket → `SLOTS_PER_BUCKET` slots, `SLOT4` or
  `SLOT6`. A slot's number is bucket * SLOTS_PER_BUCKET + place; so slot n begins at n * its size.
- ``rings``: ARRAY of maps, service id → ARRAY in memory of one `RING_HEAD` and what follows it.
- ``misses``: ring buffer of `RECORD`, the packet behind it.
- ``server_counters``, ``service_counters``: PERCPU_ARRAY, id → `COUNTERS`; packets of known and
  placed connections that the program forwarded, with the IP lengths that they came with.
- ``reasons``: PERCPU_ARRAY of one element, a u64 by `Reason`.

Constants of the program (`BpfObject.rodata`), to set before the load: ``hash_seed`` and
``hash_multiplier`` (u64, random; the latter odd), ``mask4`` and ``mask6`` (u32; numbers of buckets,
powers of two, less 1), ``clock_shift`` (u32; see `clock`). Variables, to set and to keep
right: ``here`` and ``here_end`` (the interface's own hardware address).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

# --- services ---

SERVICE_KEY: Final = Struct("<16s2sBB")
"""Virtual address (IPv4 in the first 4 bytes, the rest 0), port, protocol, IP version.

Services of port 0, of firewall marks, one-packet services, and those under secure_tcp are not
entered: their packets go the portable way. Addresses of the host's own are, without port and
protocol, as service 0: no new connections come from them."""
SERVICE: Final = Struct("<HBx")
"""Service id (from 1), `ServiceFlag`."""


class ServiceFlag(IntFlag):
    """What a service's packets are treated by."""

    SLOPPY_TCP = 1
    """A packet without SYN may open a connection (the setting sloppy_tcp)."""
    MARKS = 2
    """A mark, which the program cannot see, may make a new connection another service's: what may
    open one is passed on."""


# --- rings ---


class RingKind(IntEnum):
    """How a new connection's place in its service's ring is found."""

    TURN = 1
    """One place on for each connection."""
    SH = 2
    """By the hash of ip_vs_sh: 256 places."""
    MH = 3
    """By the hash of ip_vs_mh: as many places as the ring has."""


RING_CAPACITY: Final = 8192
RING_HEAD: Final = Struct("<QQI4x")
"""Turns that the program has taken, turns that Python has taken, and which set of places holds.

Two `PLACES` follow, and the sets themselves at `RING_SERVERS`. Python writes the set that does not
hold, and then lets it: a ring changes at once, and without a system call."""
PLACES: Final = Struct("<QHBB4x")
"""At which turn of the two counters' sum its first place is, number of places (0 = Python decides),
`RingKind`, whether the client's port counts for the hashes (sh-port, mh-port)."""
RING_SERVERS: Final = 64
"""Where the servers' ids begin, 2 bytes each, `RING_CAPACITY` of each set; 0 = Python decides."""
RING_SIZE: Final = RING_SERVERS + 2 * 2 * RING_CAPACITY

# --- servers ---


class ServerKind(IntEnum):
    """What is done with the packets of a server's connections."""

    NONE = 0
    """Python is asked, by a record."""
    TUNNEL4 = 1
    """IPIP in IPv4."""
    TUNNEL6 = 2
    """IPIP in IPv6."""
    PASS = 3
    """The portable path, XDP_PASS; neither state nor counters are touched."""


class ServerFlag(IntFlag):
    """What else there is to know of a server."""

    AVAILABLE = 1
    """Else its packets are dropped and counted, and do not prolong their connections, as the
    kernel does it for a removed server (without expire_nodest_conn)."""
    PMTU_DISC = 2
    """DF is copied to the outer header."""
    ASK_SYN = 4
    """Python is asked about a SYN to a known connection (weight 0 under expire_nodest_conn)."""


SERVER: Final = Struct("<BBHI14sH40s")
"""`ServerKind`, `ServerFlag`, the most bytes of an inner packet (0 = none passes), interface to
send from, Ethernet header, sum of the outer header (`partial_checksum`), outer header."""
SERVER_SIZE: Final = 128
SERVER_IDENTIFICATION: Final = 64
"""Where the program counts the identifications of outer IPv4 headers (u32); never written here."""


def server(
    source: bytes,
    target: bytes,
    ethernet: bytes,
    ifindex: int,
    mtu: int,
    flags: ServerFlag = ServerFlag.AVAILABLE | ServerFlag.PMTU_DISC,
) -> bytes:
    """Return a tunnel's `SERVER`.

    Args:
        source, target: addresses of the outer header, both of 4 bytes or both of 16.
        ethernet: destination's and source's hardware address; 12 bytes.
        ifindex: where to send; the interface that a packet came by sends it back (XDP_TX).
        mtu: of the route; what the tunnel takes of it is subtracted here.
        flags: what else there is to know.
    """
    if len(target) == 4:
        kind, ethertype, floor = ServerKind.TUNNEL4, b"\x08\x00", 68
        outer = b"\x45" + bytes(11) + source + target
    else:
        kind, ethertype, floor = ServerKind.TUNNEL6, b"\x86\xdd", 1280
        outer = b"\x60" + bytes(7) + source + target
    inner = min(mtu, 0xFFFF) - len(outer)
    # ip_vs_xmit.c, __ip_vs_get_out_rt: below this no packet is sent, whatever its size.
    inner = inner if inner >= floor else 0
    checksum = partial_checksum(outer) if kind is ServerKind.TUNNEL4 else 0
    return SERVER.pack(kind, flags, inner, ifindex, ethernet + ethertype, checksum, outer)


def partial_checksum(header: bytes) -> int:
    """Return the sum of a header's words, the lower byte first, folded to 16 bits."""
    total = sum(int.from_bytes(header[at : at + 2], "little") for at in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


# --- connections ---

SLOTS_PER_BUCKET: Final = 4
SLOT4: Final = Struct("<4s2sHHBBI")
"""Client's address and port, service id, server id, state, `SlotFlag`, last seen (see `clock`).

The first 8 bytes are the key: 0 = free, `BUSY` = being written. Who inserts writes BUSY, then what
follows the key, then the key. Either bucket will do; the program takes the first of the two, unless
two or more of its slots are taken and the other has fewer taken."""
SLOT6: Final = Struct("<16s2sHHBBI4x")
"""The same with 16 bytes of address. The key that is 0, or `BUSY`, is the 4 bytes behind it."""
SLOT6_KEY: Final = 16
BUSY: Final = 1
"""A key of service id 0, which no service has."""


class SlotFlag(IntFlag):
    """What else there is to know of a connection."""

    PLACED = 1
    """The program placed it."""
    TELL = 2
    """Python wants a STATE record of the next packet, and what was seen before it counts no more.
    Python sets it, or the program with a packet that it passes on; the program takes it off."""
    ONE = 0x08
    """From here on it counts the packets that the program has forwarded, up to `MANY`."""
    MANY = 0x80
    """Sixteen, or more."""


GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = 0xFFFFFFFFFFFFFFFF


def hash4(client: int, seed: int, multiplier: int) -> int:
    """Return the hash of the first 8 bytes of a `SLOT4`, read as a little-endian number.

    A bucket is `hash >> 32 & mask4`, the other `hash & mask4`. A connection is in one of them.
    """
    mixed = client ^ seed
    mixed = (mixed ^ mixed >> 32) * GOLDEN & _MASK
    mixed = (mixed ^ mixed >> 32) * multiplier & _MASK
    return mixed ^ mixed >> 29


def hash6(high: int, low: int, client: int, seed: int, multiplier: int) -> int:
    """Return the same for a `SLOT6`: two u64 of the address, and the u32 behind them."""
    mixed = (high ^ seed) * multiplier & _MASK
    mixed = (mixed ^ mixed >> 32 ^ low) * multiplier & _MASK
    return hash4(mixed ^ client, seed, multiplier)


# --- records ---


class RecordKind(IntEnum):
    """What the program tells of."""

    MISS = 1
    """A packet that may open or change a connection in a way that Python decides on: it is behind
    the record, from its IP header on, and Python alone has it now."""
    PLACED = 2
    """The program placed and forwarded a new connection; `slot`, `server` and `state` say how."""
    STATE = 3
    """A packet changed a connection's state from `old_state` to `state`, and was forwarded. They
    are the same where Python wanted to hear of it (`SlotFlag.TELL`)."""
    SYN = 4
    """As MISS: a TCP packet of IPv4 with SYN and without RST, of no connection known here."""


class RecordFlag(IntFlag):
    """What else there is to know of a record."""

    FULL = 1
    """The ring's connection found both buckets full, so it is Python's."""


RECORD: Final = Struct("<4BHBBIIIIHH16s2sH")
"""`RecordKind`, IP version, TCP flags, new state; server; protocol, old state; slot; time in units
of `clock`; both buckets; length of the packet behind it, `RecordFlag`; client's address (IPv4
in the last 4 bytes, the rest 0), port, and service: these end as the keys of slots do.

The slot is `NO_SLOT` unless the connection is known: a MISS of a known one is a SYN that may begin
another, or its server is `ServerKind.NONE`."""
CLIENT_BEGINS: Final = {4: 12, 6: 0}
"""Where in its field the address begins, by IP version."""
RECORD_LENGTH: Final = 24
RECORD_SERVICE: Final = 46
"""Where in a `RECORD` its length and its service are."""
MISS4: Final = Struct("<6xB5x3I16xQ")
MISS6: Final = Struct("<6xB5x3I4x16sI")
"""What of a `RECORD` a slot is written from: protocol, time, both buckets, and the slot's key."""
NO_SLOT: Final = 0xFFFFFFFF
SHORT_PACKET: Final = 80
"""Room for a packet in most records, in bytes."""
LONG_PACKET: Final = 2000
"""Room in the others; what is longer goes the portable way."""

# --- counters ---

COUNTERS: Final = Struct("<QQ")
"""Packets and bytes."""


class Reason(IntEnum):
    """What became of packets other than to be forwarded: an index of ``reasons``."""

    MISS = 0
    """A record of it went to Python."""
    PLACED = 1
    """It opened a connection here, and was forwarded."""
    STATE = 2
    """It changed a connection's state, or Python wanted to hear of it, and was forwarded."""
    LOST = 3
    """Dropped, for the ring buffer had no room for the record of it."""
    REMOVED = 4
    """Dropped, for its connection's server is not available."""
    NOT_IP = 5
    """Passed, as all that follow: neither IPv4 nor IPv6, or with a VLAN tag."""
    OPTIONS = 6
    """IPv4 options."""
    FRAGMENT = 7
    """Part of an IPv4 packet."""
    PROTOCOL = 8
    """Neither TCP nor UDP: ICMP, IPv6 extension headers, and all others."""
    MALFORMED = 9
    """A header is cut short, or claims more than there is."""
    NOT_OURS = 10
    """To no service that is known here."""
    NOT_OPENING = 11
    """Of no known connection, and opens none here."""
    SERVER = 12
    """To a server of `ServerKind.PASS`."""
    TTL = 13
    """It would expire on the way, which earns an ICMP error."""
    TOO_BIG = 14
    """Longer than the tunnel takes, or than a record has room for."""
    FAULT = 15
    """The kernel refused room for the outer header."""
    NOT_HERE = 16
    """Passed: to another hardware address than the interface's own."""
    SOURCE = 17
    """Passed: of no known connection, and from an address that no client has."""


# --- what user space alone reads and writes, for the next daemon ---

VERSION: Final = 5
"""Of all that is pinned: one more with every change of what is said in this file or of the
constants of the program. A daemon adopts what has its own version."""

NAME: Final = Struct("<BBHI16sBBH16sI5Q")
"""Who a server is, at its id in the array in memory ``names``: its service's protocol (0 = a
firewall mark's), IP version, port, mark and address; length of its own address (0 = the id is
free), `NameFlag`, its port and address; upper threshold; connections, packets and bytes in and
out of its listing, less those that ``server_counters`` has, modulo 2^64: in the order conns,
inpkts, outpkts, inbytes, outbytes."""


class NameFlag(IntFlag):
    """What else there is to know of a server."""

    OVERLOADED = 1


TEMPLATE_KEY: Final = Struct("<BB2x36s")
"""Protocol of a persistence template, length of its key, the key as the director has it."""
TEMPLATE: Final = Struct("<BBHI16sBBH16sH2xdd")
"""The server's service and the server as in `NAME`, with `TemplateFlag`; its port; monotonic
seconds of the end; seconds that each new connection restarts it with. In the hash ``templates``."""


class TemplateFlag(IntFlag):
    """What else there is to know of a template."""

    ASSURED = 1
