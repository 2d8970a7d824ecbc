"""Source hashing: the server is a function of the client's address.

Source: Linux net/netfilter/ipvs/ip_vs_sh.c, by behaviour. 256 buckets are dealt to the servers in
the order of the list, to each as many in a row as its weight says, round and round:

    weights 2, 1, 0        ->  A A B C  A A B C ...   a quiesced server keeps one bucket
    weights 100, 200, 50   ->  A x 100, B x 156       the third gets none: there are only 256

`schedule` is O(1), with `fallback` up to 256 buckets. The table is dealt anew, by the first
`schedule` after it, when a server joins, leaves or is edited: O(256).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice, repeat

from lvskit import Flow, RealServer, Ring, SchedulerBase, VirtualService
from lvskit_sched_hash.fold import bucket, fold

BUCKETS = 256


@dataclass(frozen=True)
class SourceOptions:
    """Options of sh; both are flags of ipvsadm's, sh-fallback and sh-port.

    Attributes:
        fallback: where the server may not be used, take that of the next bucket that may.
        port: the client's port counts too, so that its connections spread.
    """

    fallback: bool = False
    port: bool = False


class SourceHashing(SchedulerBase):
    """Looks the client up in a table of servers."""

    def __init__(self, servers: Sequence[RealServer], options: SourceOptions | None = None) -> None:
        super().__init__(servers, options)
        self._options = options or SourceOptions()
        self._table: list[RealServer] | None = None

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the server of the client's bucket, or None where it may not be used."""
        return self._at(bucket(fold(flow.caddr) + flow.cport * self._options.port))

    def ring(self, service: VirtualService) -> Ring | None:
        """Return the table, with what `fallback` finds in the place of who may not be used."""
        places = [self._at(first) for first in range(BUCKETS)]
        return Ring(servers=places, by="sh", port=self._options.port) if any(places) else None

    def _at(self, first: int) -> RealServer | None:
        """Return the server of a client's bucket, or None where it may not be used."""
        table = self._table
        if table is None:
            table = self._table = deal(self.servers)
        if not table:
            return None
        if usable(table[first]):
            return table[first]
        if self._options.fallback:
            # The kernel begins as many buckets behind the first as the first is behind 0.
            for step in range(BUCKETS):
                server = table[(first + first + step) % BUCKETS]
                if usable(server):
                    return server
        return None

    def server_added(self, server: RealServer) -> None:
        """Deal the buckets anew."""
        self._table = None

    def server_removed(self, server: RealServer) -> None:
        """Deal the buckets anew."""
        self._table = None

    def server_updated(self, server: RealServer) -> None:
        """Deal the buckets anew."""
        self._table = None


def deal(servers: Sequence[RealServer]) -> list[RealServer]:
    """Return the table: 256 servers, each `weight` times in a row; empty where there is none."""
    turns = (repeat(server, max(server.weight, 1)) for server in cycle(servers))
    return list(islice(chain.from_iterable(turns), BUCKETS))


def usable(server: RealServer) -> bool:
    """Whether a new connection may go to `server`."""
    return server.weight > 0 and not server.overloaded
