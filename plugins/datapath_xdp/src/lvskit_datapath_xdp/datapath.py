"""The datapath `xdp`: the program for known connections, the portable path for all the rest."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from lvskit import DatapathError, Director, Route, ServiceKey
from lvskit_datapath_xdp.adoption import Adoption
from lvskit_datapath_xdp.brain import Brain
from lvskit_datapath_xdp.bridge import Bridge
from lvskit_datapath_xdp.clock import Clock
from lvskit_datapath_xdp.engine import Engine
from lvskit_datapath_xdp.layout import Reason
from lvskit_datapath_xdp.loader import BpfError, RingBuffer
from lvskit_datapath_xdp.loader.privileges import CAPABILITIES
from lvskit_datapath_xdp.names import Names
from lvskit_datapath_xdp.neighbours import Neighbours
from lvskit_datapath_xdp.options import XdpOptions
from lvskit_datapath_xdp.rings import Rings
from lvskit_datapath_xdp.servers import Servers, carries
from lvskit_datapath_xdp.services import Services
from lvskit_datapath_xdp.slots import Slots, Slots4, Slots6
from lvskit_datapath_xdp.templates import Templates
from lvskit_datapath_xdp.timing import SeenDefence, SeenWheel

_TICK_S: Final = 1.0
_MOST_BATCHES: Final = 256
_NEEDED: Final = (
    "CAP_NET_ADMIN",  # rules of netfilter, neighbours that are in use
    "CAP_NET_RAW",  # a packet socket for each interface that servers are behind, as they come
    "CAP_BPF",  # maps for the rings of services that are added
)

_log = logging.getLogger(__name__)


class XdpDatapath:
    """Forwards known connections in the kernel; the rest goes through the datapath `live`.

    Both have one director. Its wheel and its defences are replaced by those that ask the program
    when it saw a connection last.

    Args:
        brain: the clock, and the maker of the portable path.
        options: the operator's.

    Raises:
        DatapathError: the portable path cannot work on this host.
    """

    capabilities = frozenset(CAPABILITIES[name] for name in _NEEDED)
    """What it needs once it runs."""

    def __init__(self, brain: Brain, options: XdpOptions) -> None:
        self._options = options
        self._brain = brain
        self._clock = brain.clock
        self._live = brain.live({"bypass": options.bypass, **options.portable})
        self._live.moved = self._update
        self._director: Director
        self._engine: Engine | None = None
        self._opened = False
        self._kept = False  # the program outlives this process
        self._slots: dict[int, Slots] = {}
        self._templates: Templates | None = None
        self._bridge: Bridge
        self._services: Services
        self._servers: Servers
        self._rings: Rings
        self._neighbours = Neighbours(self._update)

    def attach(self, director: Director) -> None:
        """Take the director that decides, before it has services."""
        self._director = director
        director.wheel = SeenWheel(self._clock(), self._kept_until)
        director.defence = SeenDefence(self._clock(), self._freshen)
        self._live.attach(director)

    def routes(self, address: bytes) -> Route | None:
        """Return the way to `address`, None where there is none."""
        return self._live.routes(address)

    def services_changed(self, keys: Sequence[ServiceKey]) -> None:
        """Take the packets of the services `keys`, and of no others."""
        self._live.services_changed(keys)
        self._update()

    def refresh(self, *, deadlines: bool) -> None:
        """Tell the director what the program has done; with `deadlines`, of each connection."""
        if self._engine is None:
            return
        for _ in range(_MOST_BATCHES):
            if not self._bridge.read():
                break
        self._servers.count()
        if self._templates is not None:
            self._templates.flush()
        if deadlines:
            self._bridge.deadlines.keep_all(self._clock())

    def losses(self) -> dict[str, int]:
        """Return packets lost on the way, and connections without a slot, by place."""
        losses = self._live.losses()
        if self._engine is not None:
            losses |= self._bridge.losses()
            losses["ring_full"] = self._engine.reason(Reason.LOST)
            losses["slots_full"] = sum(slots.unplaced for slots in self._slots.values())
        return losses

    def facts(self) -> dict[str, str]:
        """Return where the program is, and how."""
        mode = {"mode": self._engine.mode} if self._engine is not None else {}
        return {"interface": self._options.interface, **mode}

    def figures(self) -> dict[str, int]:
        """Return how many packets went which way.

        `forwarded` by the program, among them those that it `placed` by a ring and those that
        changed a TCP state; `misses` to Python by a record; `portable` through the datapath `live`.
        """
        engine = self._engine
        if engine is None:
            return {}
        counted = {"misses": Reason.MISS, "placed": Reason.PLACED, "states": Reason.STATE}
        figures = {name: engine.reason(reason) for name, reason in counted.items()}
        portable = self._live.figures()["received"]
        return {"forwarded": self._servers.forwarded, **figures, "portable": portable}

    # --- the life of the datapath ---

    def adopt(self) -> None:
        """Load the program; where a former daemon has left its maps, bring back what is in them.

        Raises:
            DatapathError: what is missing here, and how to get it.
        """
        if self._engine is not None:
            return
        engine = self._engine = Engine(self._options, self._director.table.size)
        try:
            try:
                self._prepare(engine)
            except BpfError as err:
                raise DatapathError(str(err)) from err
        except BaseException:
            self._engine = None
            engine.close()
            raise
        self._kept = engine.adopted
        self._update()

    def _prepare(self, engine: Engine) -> None:
        maps, notes = engine.maps, engine.notes
        self._slots = slots = {
            4: Slots4(maps["connections4"], engine),
            6: Slots6(maps["connections6"], engine),
        }
        self._services = Services(
            maps["services"], self._is_here, lambda: slots[4].services() | slots[6].services()
        )
        hops = self._neighbours.hops
        names = Names(notes["names"]) if notes else None
        self._servers = Servers(
            maps["servers"], maps["server_counters"], hops.get, engine.leaves_by, names
        )
        table = self._director.table
        self._templates = templates = Templates(notes["templates"], table) if notes else None
        self._rings = Rings(maps["rings"], self._services, self._servers, table)
        clock = self._ticks(engine)
        self._bridge = Bridge(
            self._director, self._clock, clock, RingBuffer(maps["misses"]), slots,
            self._services, self._servers, self._rings, self._live.send,
            *([templates.flush] if templates is not None else []),
        )  # fmt: skip
        if engine.adopted and names is not None and templates is not None:
            began = time.monotonic()
            adoption = Adoption(
                self._director, slots, self._servers, self._services, names, templates, hops
            )
            with self._brain.restoring() as restorer:
                done = adoption.run(restorer, clock, self._clock())
            _log.info(
                "%d connections go on where the last run left them, %d have ended: %.1f s",
                done.restored, done.ended, time.monotonic() - began,
            )  # fmt: skip

    def open(self) -> None:
        """Take the packets from the kernel; what Python decides on waits for `run`.

        Raises:
            DatapathError: what is missing here, and how to get it.
        """
        if self._opened:
            return
        self.adopt()
        engine = self._engine
        if engine is None:
            raise DatapathError("the datapath has been closed")
        self._live.open()
        self._bridge.place_known()
        self._bridge.catch_up()
        engine.attach()
        self._rings.adopt()
        self._opened = True
        self._kept = engine.pinned
        self._update()

    def _ticks(self, engine: Engine) -> Clock:
        """Return the clock that connections are dated by."""
        return engine.clock(self._clock)

    async def run(self) -> None:
        """Carry packets until cancelled, then leave the host as the portable path's options say.

        Where it is not cancelled but fails, and with the option `keep`, the program and its maps
        stay, for the next daemon.

        Raises:
            DatapathError: it cannot start, or the kernel takes away what it needs.
        """
        self.open()
        if self._engine is None:
            raise DatapathError("the datapath has been closed")
        ring = self._engine.maps["misses"].fd
        loop = asyncio.get_running_loop()
        work: list[Coroutine[Any, Any, None]] = [
            self._live.run(), self._neighbours.run(), self._count(),
        ]  # fmt: skip
        tasks = [asyncio.create_task(each) for each in work]
        loop.add_reader(ring, self._bridge.read)
        failed = True
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        except asyncio.CancelledError:
            failed = False
            raise
        finally:
            loop.remove_reader(ring)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._end(self._engine, keep=failed or self._options.keep)

    def _end(self, engine: Engine, *, keep: bool) -> None:
        self._kept = engine.pinned and keep and not engine.gone
        if self._kept:
            _log.info("the program stays on %s, until the next start", self._options.interface)
        else:
            engine.detach()
        self.refresh(deadlines=not self._kept)
        self.close()

    async def _count(self) -> None:
        """Have counters, routes and path MTUs right every second."""
        while self._engine is not None:
            await asyncio.sleep(_TICK_S)
            self._engine.check()
            self._engine.follow_address()
            self._servers.count()
            if self._templates is not None:
                self._templates.flush()
            self._update()

    def close(self) -> None:
        """Let go of everything; what `run` has not taken off the interface, stays. Once or more."""
        engine, self._engine = self._engine, None
        if engine is not None:
            self._bridge.close()
            self._servers.close()
            self._rings.close()
            for slots in self._slots.values():
                slots.close()
            engine.close()
        self._live.close()

    def _update(self) -> None:
        """Bring the program's services and servers to what the director has."""
        services = list(self._director.services)
        servers = [server for service in services for server in service.servers]
        removed = self._director.services.trash
        self._neighbours.want(s.address for s in [*servers, *removed] if carries(s))
        if self._engine is not None:
            self._services.update(services)
            former = self._bridge.let_go(self._servers.update(servers, removed))
            if self._opened:  # and all connections of a former daemon are back
                self._rings.update([*servers, *removed], former)
            self._bridge.watch()
            if self._templates is not None:
                self._templates.watch(services)

    def _is_here(self, address: bytes) -> bool:
        route = self._live.routes(address)
        return route is not None and route.local

    def _kept_until(self, entry: Any, now: float) -> float:
        if self._engine is None:
            return 0.0
        if self._templates is not None and not getattr(entry, "children", True):
            self._templates.ended(entry)
        return self._bridge.deadlines.until(entry, now)

    def deadline(self, connection: Any) -> float | None:
        """Return when a connection ends; None where the next start finds it in the program."""
        if connection.place is not None:
            if self._kept:
                return None
            if self._engine is not None:
                kept = self._bridge.deadlines.until(connection, self._clock())
                return max(kept, float(connection.deadline))
        return float(connection.deadline)

    def _freshen(self, entry: Any, now: float) -> None:
        if self._engine is not None:
            self._bridge.deadlines.freshen(entry, now)
