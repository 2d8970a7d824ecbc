"""The program's servers: written as the director's change, and their counters read back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.layout import ServerFlag, ServerKind
from lvskit_datapath_xdp.loader import Map
from lvskit_datapath_xdp.names import Names, Noted, count_on
from lvskit_datapath_xdp.neighbours import Hop

_TUNNEL: Final = "tunnel"
_PLAIN: Final = "ipip"
_NOWHERE: Final = layout.SERVER.pack(ServerKind.NONE, ServerFlag.AVAILABLE, 0, 0, b"", 0, b"")
_PORTABLE: Final = layout.SERVER.pack(ServerKind.PASS, ServerFlag.AVAILABLE, 0, 0, b"", 0, b"")


@dataclass(slots=True)
class Entry:
    """A server that the program knows by number.

    Attributes:
        number: its id.
        server: the director's.
        way: the forwarder's bound method that the entry stands for.
        content: as written.
        carried: its connections may have slots.
        ifindex, head: where its frames leave, and their Ethernet header; 0 and nothing while
            packets go the portable way.
        packets, octets: of the program, as far as the director knows them.
    """

    number: int
    server: Any
    way: object
    content: bytes = b""
    carried: bool = False
    ifindex: int = 0
    head: bytes = b""
    packets: int = 0
    octets: int = 0


class Servers:
    """Which server has which id, and what the program does with its packets.

    Args:
        map_: ``servers``.
        counters: ``server_counters``.
        hops: returns the way over the link to an address, None while it is not known.
        leaves_by: whether the program can send by an interface.
        names: where each id's server is written down for the next daemon, or None.

    Attributes:
        entries: what the program knows, by server; by_number: the servers by their ids.
        forwarded: packets that the program has sent, as of the last count.
    """

    def __init__(
        self,
        map_: Map,
        counters: Map,
        hops: Callable[[bytes], Hop | None],
        leaves_by: Callable[[int], bool],
        names: Names | None = None,
    ) -> None:
        self._names = names
        self._memory = map_.mmap().cast("B")
        self._capacity = map_.spec.max_entries
        self._counters = counters
        self._hops, self._leaves_by = hops, leaves_by
        self.entries: dict[Any, Entry] = {}
        self.by_number: dict[int, Any] = {}
        self.forwarded = 0
        self._free: list[int] = []
        self._next = 1

    def update(self, present: Iterable[Any], removed: Iterable[Any]) -> list[Any]:
        """Write what has changed.

        Args:
            present: the servers that there are.
            removed: those that were removed and are remembered.

        Returns:
            The servers that are carried in another way from now on, or no longer: their
            connections may not be.
        """
        changed = []
        kept = set()
        for server in (*present, *removed):
            kept.add(server)
            entry = self.entries.get(server)
            if entry is None:
                number = self._number()
                if number is None:
                    continue  # so its connections go the portable way
                entry = self.entries[server] = Entry(number, server, server.transmit)
                self.by_number[number] = server
                entry.packets, entry.octets = self._read(number)
                self._note(entry)
            elif entry.way != server.transmit:
                entry.way = server.transmit
                changed.append(server)
            carried = entry.carried
            self._write(entry)
            if carried and not entry.carried:
                changed.append(server)
        for server in [s for s in self.entries if s not in kept and not s.referenced]:
            number = self.entries.pop(server).number
            del self.by_number[number]
            self._free.append(number)
            if self._names is not None:
                self._names.clear(number)
        return changed

    def adopt(self, number: int, server: Any, noted: Noted) -> Hop | None:
        """Give a server the id and the counts that it has from before.

        Returns:
            The way over the link to it that the program knows.
        """
        start = number * layout.SERVER_SIZE
        content = bytes(self._memory[start : start + layout.SERVER.size])
        entry = self.entries[server] = Entry(number, server, server.transmit, content)
        self.by_number[number] = server
        self._free += range(self._next, number)
        self._next = max(self._next, number + 1)
        entry.packets, entry.octets = self._read(number)
        count_on(server, noted, entry.packets, entry.octets)
        if content[0] not in (ServerKind.TUNNEL4, ServerKind.TUNNEL6):
            return None
        return Hop(int.from_bytes(content[4:8], "little"), content[8:20])

    def _number(self) -> int | None:
        if self._free:
            return self._free.pop()
        number = self._next
        self._next = min(number + 1, self._capacity)
        return number if number < self._capacity else None

    def _write(self, entry: Entry) -> None:
        content = self._content(entry)
        kind = content[0]
        entry.carried = kind != ServerKind.PASS
        tunnel = kind in (ServerKind.TUNNEL4, ServerKind.TUNNEL6)
        entry.ifindex = int.from_bytes(content[4:8], "little") if tunnel else 0
        entry.head = content[8:22] if tunnel else b""
        if content == entry.content:
            return
        entry.content = content
        start = entry.number * layout.SERVER_SIZE
        # Packets that come meanwhile ask Python.
        self._memory[start] = ServerKind.NONE
        self._memory[start + 1 : start + len(content)] = content[1:]
        self._memory[start] = content[0]

    def _content(self, entry: Entry) -> bytes:
        server = entry.server
        # Of a removed server, the director may have every packet begin anew.
        leaves = not server.available and server.rules.settings.expire_nodest_conn
        if leaves or not carries(server):
            return _PORTABLE
        hop = self._hops(server.address)
        flags = ServerFlag.AVAILABLE if server.available else ServerFlag(0)
        if hop is None:
            return _NOWHERE
        if not self._leaves_by(hop.ifindex):
            return _PORTABLE
        if server.pmtu_disc:
            flags |= ServerFlag.PMTU_DISC
        if not server.weight and server.rules.settings.expire_nodest_conn:
            flags |= ServerFlag.ASK_SYN
        source, mtu = server.route.source, server.route.mtu
        return layout.server(source, server.address, hop.ethernet, hop.ifindex, mtu, flags)

    def count(self) -> None:
        """Tell the director what the program has forwarded since the last time."""
        for entry in self.entries.values():
            packets, octets = self._read(entry.number)
            counters = entry.server.counters
            self.forwarded += packets - entry.packets
            counters.inpkts += packets - entry.packets
            counters.inbytes += octets - entry.octets
            entry.packets, entry.octets = packets, octets
            self._note(entry)

    def _note(self, entry: Entry) -> None:
        if self._names is not None:
            self._names.write(entry.number, entry.server, entry.packets, entry.octets)

    def _read(self, number: int) -> tuple[int, int]:
        size = layout.COUNTERS.size
        values = self._counters.lookup(number) or b""
        pairs = [layout.COUNTERS.unpack_from(values, at) for at in range(0, len(values), size)]
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.release()
        if self._names is not None:
            self._names.close()


def carries(server: Any) -> bool:
    """Whether the program can carry a server's packets: by plain IPIP to another host."""
    settings, route = server.settings, server.route
    return (
        settings.method == _TUNNEL
        and settings.options.get("type", _PLAIN) == _PLAIN
        and route is not None
        and not route.local
    )
