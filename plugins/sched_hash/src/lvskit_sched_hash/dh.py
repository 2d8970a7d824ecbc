"""Destination hashing: the server is a function of the virtual address.

Source: Linux net/netfilter/ipvs/ip_vs_dh.c, by behaviour. 256 buckets are dealt to the servers in
the order of the list, one at a time; weights do not matter except 0, and there is no fallback.
Made for caches behind a fwmark service that spans many addresses: a service of one virtual
address uses one server.

`schedule` is O(1). The table is dealt anew, by the first `schedule` after it, when a server joins
or leaves: O(256).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from lvskit import Flow, RealServer, Ring, SchedulerBase, VirtualService
from lvskit_sched_hash.fold import bucket, fold
from lvskit_sched_hash.sh import BUCKETS, usable


class DestinationHashing(SchedulerBase):
    """Looks the virtual address up in a table of servers."""

    def __init__(self, servers: Sequence[RealServer], options: Any = None) -> None:
        super().__init__(servers, options)
        self._table: list[RealServer] | None = None

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the server of the virtual address's bucket, or None where it may not be used."""
        return self._of(flow.destination)

    def ring(self, service: VirtualService) -> Ring | None:
        """Return the one server of the virtual address; None for a mark, which may have many."""
        server = self._of(service.address) if service.address else None
        return Ring(servers=[server]) if server else None

    def _of(self, address: bytes) -> RealServer | None:
        """Return the server of an address's bucket, or None where it may not be used."""
        table = self._table
        if table is None:
            table = self._table = list(islice(cycle(self.servers), BUCKETS))
        if not table:
            return None
        server = table[bucket(fold(address))]
        return server if usable(server) else None

    def server_added(self, server: RealServer) -> None:
        """Deal the buckets anew."""
        self._table = None

    def server_removed(self, server: RealServer) -> None:
        """Deal the buckets anew."""
        self._table = None
