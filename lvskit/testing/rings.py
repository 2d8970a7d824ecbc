"""What a datapath makes of a scheduler's ring, and whether the scheduler agrees.

>>> from lvskit import Ring, SchedulerBase
>>> from lvskit.testing.reference import Pool
>>> class Alternate(SchedulerBase):
...     turn = 0
...     def schedule(self, flow):
...         self.turn += 1
...         return self.servers[self.turn % 2]
...     def ring(self, service):
...         return Ring(servers=[self.servers[1 - self.turn % 2], self.servers[self.turn % 2]])
>>> pool = Pool(Alternate)
>>> pool.add(), pool.add()
(None, None)
>>> check_ring(pool.schedulers[0], pool.service, [CLIENT] * 5)
5
"""

from __future__ import annotations

from collections.abc import Iterable

from lvskit import Flow, RealServer, Ring, Scheduler, VirtualService
from lvskit.testing.reference.hashes import bucket, folded, hsiphash
from lvskit.testing.reference.pool import CLIENT

__all__ = ["CLIENT", "RingReader", "check_ring"]


class RingReader:
    """Finds servers in a ring as a datapath does, which does not ask the scheduler.

    Args:
        ring: what the scheduler gave.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._turn = 0

    def choose(self, flow: Flow) -> RealServer | None:
        """Return the server of a new connection; None = the scheduler is asked."""
        servers = self._ring.servers
        client = folded(flow.caddr) + (flow.cport if self._ring.port else 0)
        if self._ring.by == "sh":
            return servers[bucket(client, len(servers))]
        if self._ring.by == "mh":
            return servers[hsiphash(0, client % 2**32) % len(servers)]
        self._turn += 1
        return servers[(self._turn - 1) % len(servers)]


def check_ring(scheduler: Scheduler, service: VirtualService, flows: Iterable[Flow]) -> int:
    """Hold a scheduler's ring against its `schedule`, which is called for each of `flows`.

    Returns:
        How many of the flows the ring has a server for; 0 where there is no ring.

    Raises:
        AssertionError: they do not agree, or `ring` is not what it must be.
    """
    ring = scheduler.ring(service)
    if ring is None:
        return 0
    assert isinstance(ring, Ring), f"ring returned {ring!r}"
    strangers = [s for s in ring.servers if s is not None and s not in service.servers]
    assert not strangers, f"{strangers[0]!r} is none of the service's servers"
    reader, found = RingReader(ring), 0
    for number, flow in enumerate(flows):
        place, choice = reader.choose(flow), scheduler.schedule(flow)
        assert place in (None, choice), f"flow {number}: {place!r} in the ring, {choice!r} chosen"
        found += place is not None
    return found
