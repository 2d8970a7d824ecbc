"""The live datapath: its life, and what it and the host tell each other."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from lvskit.core.director import Director
from lvskit.datapath.live.carrier import Carrier
from lvskit.datapath.live.routes import PathErrors, Routes
from lvskit.datapath.live.rules import Rules
from lvskit.datapath.live.wants import Wants
from lvskit.errors import DatapathError
from lvskit.settings import ServiceKey
from lvskit.types import Route, Verdict

_TICK_S: Final = 2.0
_SOONEST_S: Final = 0.01
_SETTLE_S: Final = 0.05  # routes change in flocks


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """What an operator may choose.

    Attributes:
        queue: number of the packet queue, 0 to 65535: one for each daemon of a network namespace.
        table: name of the nftables table.
        length: packets that may wait for the director; more are dropped.
        buffer: bytes of packets that may wait to be read by it.
        on_stop: "drop" leaves the table after a stop, so that the packets of the services are
            dropped until the next start and connections survive; "open" removes it.
        bypass: let the packets of the services pass to the local stack whenever the daemon does
            not run, crashes included.
    """

    queue: int = 8080
    table: str = "lvskit"
    length: int = 4096
    buffer: int = 1 << 25
    on_stop: str = "drop"
    bypass: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.queue <= 0xFFFF:
            raise ValueError(f"queue {self.queue}; allowed: 0 to 65535")
        if self.length < 1 or self.buffer < 1:
            raise ValueError("length and buffer must be 1 or more")
        if self.on_stop not in ("drop", "open"):
            raise ValueError(f"on_stop {self.on_stop!r}; allowed: 'drop', 'open'")
        if not self.table or len(self.table) > 31:
            raise ValueError(f"table {self.table!r}; allowed: a name of 1 to 31 characters")


class LiveDatapath:
    """Carries packets between the host's network stack and a director.

    Make it, make the director with its `routes`, `attach` the director, say which services there
    are, and `run`.

    Args:
        options: the operator's choices.
        clock: monotonic seconds, as the director's `now`; those of the event loop's timers too.

    Attributes:
        moved: called when the routes have changed, and the director knows.

    Raises:
        DatapathError: netlink is missing here.
    """

    def __init__(
        self, options: LiveOptions | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.options = options or LiveOptions()
        self._clock = clock
        self._director: Director
        self._wants: Wants
        self._routes = Routes()
        self._carrier: Carrier | None = None
        self._rules: Rules | None = None
        self._path_errors: PathErrors | None = None
        self.moved: Callable[[], None] = lambda: None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._asked = -_SETTLE_S
        self._failure: asyncio.Future[None] | None = None

    @property
    def received(self) -> int:
        """Packets taken from the kernel so far."""
        return self._carrier.received if self._carrier else 0

    @property
    def sent(self) -> int:
        """Packets given to it so far."""
        return self._carrier.sent if self._carrier else 0

    def attach(self, director: Director) -> None:
        """Take the director that decides; before `open` or `run`."""
        self._director = director
        self._wants = Wants(director)

    # --- what the director and its owner tell and ask ---

    def routes(self, address: bytes) -> Route | None:
        """Return the way to `address`, None where there is none."""
        return self._routes.get(address)

    def services_changed(self, keys: Iterable[ServiceKey]) -> None:
        """Take the packets of the services `keys`, and of no others.

        Call it after any command, and before `run`: what is sent to the kernel is the difference.

        Raises:
            DatapathError: the kernel refuses.
        """
        self._wants.change(keys, self._clock())
        if self._rules is not None:
            self._rules.update(self._wants.claims())
            self._rules.watch(self._wants.watch())

    def losses(self) -> dict[str, int]:
        """Return packets lost on the way, by the place where they were."""
        return self._carrier.losses() if self._carrier else {}

    def figures(self) -> dict[str, int]:
        """Return packets taken from the kernel and given to it so far."""
        return {"received": self.received, "sent": self.sent}

    def send(self, verdict: Verdict, packet: bytes) -> bool:
        """Carry out a verdict on a packet that did not come from here.

        Returns:
            False where nothing was sent: the host itself should have got the packet.
        """
        return self._carrier is not None and self._carrier.send(verdict, packet)

    # --- the life of the datapath ---

    def open(self) -> None:
        """Take the packets from the kernel; they wait for `run`.

        Raises:
            DatapathError: what is missing here, and how to get it.
        """
        if self._rules is not None:
            return
        options = self.options
        try:
            self._path_errors = PathErrors()
            # The queue first: it is refused where another daemon runs, whose rules must live.
            carrier = Carrier(
                options.queue, options.length, options.buffer, self._clock, self._tunnel_error
            )
            self._carrier, carrier.director = carrier, self._director
            rules = Rules(options.table, options.queue, options.queue, bypass=options.bypass)
            try:
                rules.install(self._wants.claims())
                rules.watch(self._wants.watch())
            except DatapathError:
                rules.close()
                raise
            self._rules = rules
        except DatapathError:
            self._close_sockets()
            raise

    async def run(self) -> None:
        """Carry packets until cancelled, then leave the host as `on_stop` says.

        Raises:
            DatapathError: it cannot start, or the kernel takes away what it needs.
        """
        self.open()
        if self._carrier is None or self._rules is None or self._path_errors is None:
            raise DatapathError("the datapath has been closed")
        loop = asyncio.get_running_loop()
        self._failure = loop.create_future()
        readers = {
            **self._carrier.readers,
            self._rules.fileno(): self._rules_changed,
            self._routes.fileno(): self._routes_changed,
        }
        for descriptor, callback in readers.items():
            loop.add_reader(descriptor, callback)
        for each in self._path_errors.sockets:
            loop.add_reader(each, self._path_changed)
        self._tick()
        try:
            await self._failure
        finally:
            for each in self._path_errors.sockets:
                loop.remove_reader(each)
            for descriptor in readers:
                loop.remove_reader(descriptor)
            for timer in self._timers.values():
                timer.cancel()
            self.close()

    def close(self) -> None:
        """Stop: leave the rules, or remove them, as `on_stop` says; once or more."""
        rules, self._rules = self._rules, None
        if rules is not None:
            try:
                if (
                    self.options.on_stop == "open"
                    or self.options.bypass
                    or not self._wants.services
                ):
                    rules.remove()
                else:
                    rules.watch(self._wants.watch()._replace(copies=False))
            finally:
                rules.close()
        self._close_sockets()
        self._routes.close()

    def _close_sockets(self) -> None:
        if self._carrier is not None:
            self._carrier.close()
        if self._path_errors is not None:
            self._path_errors.close()

    # --- time, and changes to the host ---

    def _tick(self) -> None:
        """End what is due, and come again when something may be."""
        now = self._clock()
        try:
            self._director.expire(now)
            if self._wants.forget() and self._rules is not None:
                self._rules.update(self._wants.claims())
        except DatapathError as err:
            self._fail(err)
        finally:
            due = self._director.next_timer()
            delay = _TICK_S if due is None else min(max(due - now, _SOONEST_S), _TICK_S)
            self._later("tick", delay)

    def _later(self, name: str, delay: float) -> None:
        callback = self._tick if name == "tick" else self._refresh_routes
        self._timers[name] = asyncio.get_running_loop().call_later(delay, callback)

    def _routes_changed(self) -> None:
        """Ask for the routes again when the changes have settled."""
        self._routes.drain()
        self._ask_later()

    def _tunnel_error(self, protocol: int) -> None:
        """Have the host learn from errors about tunnels of any kind: the first shows the kind."""
        if self._path_errors is not None:
            new = self._path_errors.expect(socket.AF_INET, protocol)
            if new is not None:
                asyncio.get_running_loop().add_reader(new, self._path_changed)

    def _path_changed(self) -> None:
        """Ask at once, since the next packet needs the new MTU; but not for each of a flock."""
        if self._path_errors is not None:
            self._path_errors.drain()
        if self._clock() < self._asked + _SETTLE_S:
            self._ask_later()
        else:
            self._refresh_routes()

    def _ask_later(self) -> None:
        if "routes" not in self._timers:
            self._later("routes", _SETTLE_S)

    def _refresh_routes(self) -> None:
        self._timers.pop("routes", None)
        self._asked = self._clock()
        try:
            if self._routes.refresh():
                self._director.routes_changed()
                if self._rules is not None:  # a server may be this host itself now
                    self._rules.watch(self._wants.watch())
                self.moved()
        except DatapathError as err:
            self._fail(err)

    def _rules_changed(self) -> None:
        """Put the table back where another program's ``flush ruleset`` took it."""
        rules = self._rules
        if rules is not None and rules.lost():
            try:
                rules.install(self._wants.claims())
            except DatapathError as err:
                self._fail(err)

    def _fail(self, err: DatapathError) -> None:
        """Let `run` raise `err`."""
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(err)
