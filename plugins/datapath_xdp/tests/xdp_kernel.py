"""The program in the kernel as tests see it: tables written, frames sent, what came of them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import lvskit_datapath_xdp
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.clock import clock_shift
from lvskit_datapath_xdp.layout import Reason, RecordKind, RingKind, ServiceFlag
from lvskit_datapath_xdp.loader import BpfObject, RingBuffer
from lvskit_datapath_xdp.ring import RingMemory

OBJECT = Path(lvskit_datapath_xdp.__file__).parent / "bpf" / "lvskit.bpf.o"
VERDICTS = ("ABORTED", "DROP", "PASS", "TX", "REDIRECT")
BUCKETS = 16
INGRESS = 1  # where test runs come from: the loopback
SEED, MULTIPLIER = 0x1234_5678_9ABC_DEF1, 0xD6E8_FEB8_6659_FD93
MAC_HERE = bytes.fromhex("020000000002")
Address = str | bytes


class Record(NamedTuple):
    """A record from the ring buffer, as `layout.RECORD` has it, and the packet behind it."""

    kind: int
    version: int
    tcp_flags: int
    state: int
    server: int
    protocol: int
    old_state: int
    slot: int
    seen: int
    bucket: int
    other: int
    length: int
    flags: int
    address: bytes
    port: bytes
    service: int
    packet: bytes


@dataclass
class Sent:
    """What came of one frame."""

    verdict: str
    frame: bytes
    records: list[Record]
    reasons: dict[Reason, int] = field(default_factory=dict)


def packed(address: Address) -> bytes:
    """Return an address as packets have it."""
    return ip_address(address).packed


def port_bytes(port: int) -> bytes:
    """Return a port as packets have it."""
    return port.to_bytes(2, "big")


class Kernel:
    """The loaded program with small tables; `close` it."""

    def __init__(self, *, buckets: int = BUCKETS, records: int = 1 << 16) -> None:
        obj = BpfObject.read(OBJECT)
        for name in ("connections4", "connections6"):
            obj.maps[name].max_entries = buckets
        obj.maps["misses"].max_entries = records
        obj.rodata["mask4"] = obj.rodata["mask6"] = buckets - 1
        obj.rodata["hash_seed"], obj.rodata["hash_multiplier"] = SEED, MULTIPLIER
        obj.rodata["clock_shift"] = clock_shift()
        self.buckets = buckets
        self.loaded = obj.load()
        self.maps = self.loaded.maps
        self.servers = self.maps["servers"].mmap()
        self.loaded.variable("here")[:] = MAC_HERE[:4]
        self.loaded.variable("here_end")[:] = MAC_HERE[4:]
        self.tables = {
            4: self.maps["connections4"].mmap(),
            6: self.maps["connections6"].mmap(),
        }
        self.ring = RingBuffer(self.maps["misses"])

    def close(self) -> None:
        """Let go of it."""
        self.loaded.close()

    def clear(self) -> None:
        """Empty every table and counter."""
        for key, _ in list(self.maps["services"].items()):
            self.maps["services"].delete(key)
        for number in range(16):
            self.maps["rings"].delete(number)
        for memory in (self.servers, *self.tables.values()):
            memory[:] = bytes(len(memory))
        for name in ("server_counters", "service_counters"):
            for number in range(16):
                self.maps[name].update(number, bytes(self.maps[name].value_bytes))
        self.maps["reasons"].update(0, bytes(self.maps["reasons"].value_bytes))
        self.ring.read()
        self.ring.release()

    # --- tables ---

    def service(
        self, number: int, address: Address, port: int, protocol: int, *, flags: int = 0
    ) -> None:
        """Enter a service."""
        raw = packed(address)
        version = 4 if len(raw) == 4 else 6
        key = layout.SERVICE_KEY.pack(raw, port_bytes(port), protocol, version)
        self.maps["services"].update(key, layout.SERVICE.pack(number, ServiceFlag(flags)))

    def server(self, number: int, value: bytes) -> None:
        """Enter a server."""
        at = number * layout.SERVER_SIZE
        self.servers[at : at + len(value)] = value

    def place(
        self,
        service: int,
        servers: Sequence[int],
        kind: RingKind = RingKind.TURN,
        *,
        port: bool = False,
    ) -> RingMemory:
        """Give a service its ring."""
        ring = RingMemory()
        ring.write(servers, kind, port=port, first=0)
        self.maps["rings"].update(service, ring.map)
        return ring

    def buckets_of(self, address: Address, port: int, service: int) -> tuple[int, int]:
        """Return the two buckets of a connection, by the hash as Python computes it."""
        raw = packed(address)
        if len(raw) == 4:
            client = raw + port_bytes(port) + struct.pack("<H", service)
            hashed = layout.hash4(int.from_bytes(client, "little"), SEED, MULTIPLIER)
        else:
            high, low = struct.unpack("<QQ", raw)
            client = port_bytes(port) + struct.pack("<H", service)
            words = (high, low, int.from_bytes(client, "little"))
            hashed = layout.hash6(*words, SEED, MULTIPLIER)
        return hashed >> 32 & self.buckets - 1, hashed & self.buckets - 1

    def connect(
        self,
        address: Address,
        port: int,
        service: int,
        server: int,
        state: int = 0,
        *,
        flags: int = 0,
        seen: int = 0,
        second: bool = False,
    ) -> int:
        """Enter a connection into one of its buckets, as Python does; return its slot's number."""
        raw = packed(address)
        bucket = self.buckets_of(address, port, service)[second]
        form = layout.SLOT4 if len(raw) == 4 else layout.SLOT6
        memory = self.tables[4 if len(raw) == 4 else 6]
        for slot in range(bucket * layout.SLOTS_PER_BUCKET, (bucket + 1) * layout.SLOTS_PER_BUCKET):
            at = slot * form.size
            if not any(memory[at : at + form.size]):
                value = form.pack(raw, port_bytes(port), service, server, state, flags, seen)
                memory[at : at + form.size] = value
                return slot
        raise AssertionError(f"bucket {bucket} is full")

    def slot(self, version: int, number: int) -> tuple[Any, ...]:
        """Return the fields of a slot."""
        form = layout.SLOT4 if version == 4 else layout.SLOT6
        return form.unpack_from(self.tables[version], number * form.size)

    def taken(self, version: int) -> list[int]:
        """Return the numbers of the slots that are not free."""
        form = layout.SLOT4 if version == 4 else layout.SLOT6
        key = slice(0, 8) if version == 4 else slice(layout.SLOT6_KEY, layout.SLOT6_KEY + 4)
        memory = self.tables[version]
        starts = range(0, len(memory), form.size)
        slots = [bytes(memory[at : at + form.size]) for at in starts]
        return [number for number, slot in enumerate(slots) if any(slot[key])]

    # --- packets ---

    def send(self, frame: bytes) -> Sent:
        """Run the program on a frame."""
        before = self.reasons()
        done = self.loaded.programs["lvskit"].test_run(frame)
        after = self.reasons()
        told = {reason: after[reason] - before[reason] for reason in Reason}
        changed = {reason: more for reason, more in told.items() if more}
        return Sent(VERDICTS[done.verdict], done.packet, self.records(), changed)

    def records(self) -> list[Record]:
        """Take the records that wait."""
        taken = []
        for view in self.ring.read():
            fields = layout.RECORD.unpack_from(view)
            length, room = fields[11], 0
            if fields[0] in (RecordKind.MISS, RecordKind.SYN):
                room = layout.SHORT_PACKET if length <= layout.SHORT_PACKET else layout.LONG_PACKET
            assert len(view) == layout.RECORD.size + room
            behind = bytes(view[layout.RECORD.size : layout.RECORD.size + length])
            taken.append(Record(*fields, behind))
        self.ring.release()
        return taken

    def reasons(self) -> list[int]:
        """Return how many packets there were of each reason."""
        raw = self.maps["reasons"].lookup(0) or b""
        words = struct.unpack(f"<{len(raw) // 8}Q", raw)
        return [sum(words[reason :: len(Reason)]) for reason in Reason]

    def counted(self, name: str, number: int) -> tuple[int, int]:
        """Return the packets and bytes of a server or service."""
        raw = self.maps[f"{name}_counters"].lookup(number) or b""
        rows = list(layout.COUNTERS.iter_unpack(raw))
        return sum(packets for packets, _ in rows), sum(size for _, size in rows)
