"""The datapath `xdp`: the program for known connections, the portable path for all the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

from lvskit import DatapathError, Director, Route, ServiceKey, Verdict
from lvskit_datapath_xdp.bridge import Bridge
from lvskit_datapath_xdp.engine import Engine
from lvskit_datapath_xdp.layout import Reason
from lvskit_datapath_xdp.loader import BpfError, RingBuffer
from lvskit_datapath_xdp.neighbours import Neighbours
from lvskit_datapath_xdp.options import XdpOptions
from lvskit_datapath_xdp.servers import Servers, carries
from lvskit_datapath_xdp.services import Services
from lvskit_datapath_xdp.slots import Slots, Slots4, Slots6
from lvskit_datapath_xdp.timing import SeenWheel

_TICK_S: Final = 1.0
_MOST_BATCHES: Final = 256


class Portable(Protocol):
    """The datapath `live`, as far as it is used here."""

    def routes(self, address: bytes) -> Route | None:
        """See `lvskit.Datapath`."""

    async def run(self) -> None:
        """See `lvskit.Datapath`."""

    def attach(self, director: Director) -> None:
        """Take the director that decides."""

    def services_changed(self, keys: Sequence[ServiceKey]) -> None:
        """Take the packets of these services."""

    def losses(self) -> dict[str, int]:
        """Return packets lost on the way."""

    def figures(self) -> dict[str, int]:
        """Return packets carried."""

    def open(self) -> None:
        """Take the packets from the kernel."""

    def send(self, verdict: Verdict, packet: bytes) -> bool:
        """Carry out a verdict."""

    def close(self) -> None:
        """Undo every change made to the host."""


class Brain(Protocol):
    """What the daemon gives a datapath's factory."""

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds."""

    def live(self, options: Mapping[str, Any]) -> Portable:
        """Return a live datapath."""


class XdpDatapath:
    """Forwards known connections in the kernel; the rest goes through the datapath `live`.

    Both have one director. Its wheel is replaced by one that asks the program when it saw a
    connection last.

    Args:
        brain: the clock, and the maker of the portable path.
        options: the operator's.

    Raises:
        DatapathError: the portable path cannot work on this host.
    """

    def __init__(self, brain: Brain, options: XdpOptions) -> None:
        self._options = options
        self._clock = brain.clock
        self._live = brain.live({"bypass": options.bypass, **options.portable})
        self._director: Director
        self._engine: Engine | None = None
        self._slots: dict[int, Slots] = {}
        self._bridge: Bridge
        self._services: Services
        self._servers: Servers
        self._neighbours = Neighbours(self._update)

    def attach(self, director: Director) -> None:
        """Take the director that decides, before it has services."""
        self._director = director
        director.wheel = SeenWheel(self._clock(), self._kept_until)
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
        if deadlines:
            self._bridge.keep(self._clock())

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

    def open(self) -> None:
        """Take the packets from the kernel; what Python decides on waits for `run`.

        Raises:
            DatapathError: what is missing here, and how to get it.
        """
        if self._engine is not None:
            return
        self._live.open()
        engine = Engine(self._options, self._director.table.size)
        try:
            self._open(engine)
        except BpfError as err:
            engine.close()
            raise DatapathError(str(err)) from err

    def _open(self, engine: Engine) -> None:
        maps = engine.maps
        self._slots = {
            4: Slots4(maps["connections4"], engine),
            6: Slots6(maps["connections6"], engine),
        }
        self._services = Services(maps["services"])
        hops = self._neighbours.hops
        self._servers = Servers(
            maps["servers"], maps["server_counters"], hops.get, engine.leaves_by
        )
        self._bridge = Bridge(
            self._director, self._clock, engine.clock(self._clock), RingBuffer(maps["misses"]),
            self._slots, self._services, self._servers, self._live.send,
        )  # fmt: skip
        self._engine = engine
        self._update()
        self._bridge.place_known()
        engine.attach()

    async def run(self) -> None:
        """Carry packets until cancelled, then leave the host as the portable path's options say.

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
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            loop.remove_reader(ring)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._engine.detach()
            self.refresh(deadlines=True)
            self.close()

    async def _count(self) -> None:
        """Have counters, routes and path MTUs right every second."""
        while self._engine is not None:
            await asyncio.sleep(_TICK_S)
            self._engine.check()
            self._servers.count()
            self._update()

    def close(self) -> None:
        """Stop; once or more."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.detach()
            self._bridge.close()
            self._servers.close()
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
            former = self._servers.update(servers, removed)
            if former:
                self._bridge.let_go(former)
            self._bridge.watch()

    def _kept_until(self, entry: Any, now: float) -> float:
        return self._bridge.kept_until(entry, now) if self._engine is not None else 0.0
