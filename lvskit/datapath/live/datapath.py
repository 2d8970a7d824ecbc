"""The live datapath: packets from the kernel's queue to the director, and its verdicts back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from lvskit.core.director import Director
from lvskit.core.service import RealServer
from lvskit.datapath.live.nfqueue import ACCEPT, DROP, PacketLog, PacketQueue
from lvskit.datapath.live.routes import PathErrors, Routes
from lvskit.datapath.live.rules import Rules
from lvskit.datapath.live.sender import Sender
from lvskit.errors import DatapathError
from lvskit.settings import ServiceKey
from lvskit.types import Deliver, NotOurs, Reply, Route, Transmit

_LOCAL: Final = "local"  # the forwarding method that delivers to this host's own sockets
_BATCH: Final = 128  # packets to one turn of the event loop
_TICK_S: Final = 2.0
_SOONEST_S: Final = 0.01
_SETTLE_S: Final = 0.05  # routes change in flocks
_LOG_BUFFER: Final = 1 << 22


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
        received, sent: packets so far.

    Raises:
        DatapathError: netlink is missing here.
    """

    def __init__(
        self, options: LiveOptions | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.options = options or LiveOptions()
        self._clock = clock
        self.received = self.sent = 0
        self._director: Director
        self._routes = Routes()
        self._keys: frozenset[ServiceKey] = frozenset()
        self._leaving: dict[ServiceKey, set[RealServer]] = {}
        self._queue: PacketQueue | None = None
        self._log: PacketLog | None = None
        self._rules: Rules | None = None
        self._sender: Sender | None = None
        self._path_errors: PathErrors | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failure: asyncio.Future[None] | None = None

    def attach(self, director: Director) -> None:
        """Take the director that decides; before `open` or `run`."""
        self._director = director

    # --- what the director and its owner tell and ask ---

    def routes(self, address: bytes) -> Route | None:
        """Return the way to `address`, None where there is none."""
        route = self._routes.get(address)
        if route is not None and route.local and self._rules is not None:
            self._rules.watch_replies(wanted=True)
        return route

    def services_changed(self, keys: Iterable[ServiceKey]) -> None:
        """Take the packets of the services `keys`, and of no others.

        Call it after any command, and before `run`: what is sent to the kernel is the difference.
        A service that is gone keeps its packets while connections remain: the director drops them
        as the kernel's ip_vs does, where the local stack would answer with a reset.

        Raises:
            DatapathError: the kernel refuses.
        """
        before, self._keys = self._keys, frozenset(keys)
        gone = before - self._keys
        if gone and self._rules is not None:
            for entry in self._director.connections(self._clock()):
                if entry.server.service.key in gone:
                    self._leaving.setdefault(entry.server.service.key, set()).add(entry.server)
        self._forget_left()
        if self._rules is not None:
            self._rules.update(self._claimed())
            self._rules.watch_replies(wanted=self._has_local_server())

    def _claimed(self) -> Iterable[ServiceKey]:
        return [*self._keys, *self._leaving]

    def _forget_left(self) -> bool:
        """Forget services whose last connection has gone; True where there were some."""
        before = len(self._leaving)
        for key, servers in list(self._leaving.items()):
            # Without any service the director claims no packet, connection or not.
            if not self._keys or key in self._keys or not any(s.referenced for s in servers):
                del self._leaving[key]
        return len(self._leaving) != before

    def _has_local_server(self) -> bool:
        return any(
            server.settings.method == _LOCAL or (server.route is not None and server.route.local)
            for service in self._director.services
            for server in service.servers
        )

    def losses(self) -> dict[str, int]:
        """Return packets lost on the way, by the place where they were."""
        full, unread = self._queue.losses() if self._queue else (0, 0)
        failed = sum(self._sender.failed.values()) if self._sender else 0
        return {"queue_full": full, "buffer_full": unread, "not_sent": failed}

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
            self._sender = Sender()
            self._path_errors = PathErrors()
            # The queue first: it is refused where another daemon runs, whose rules must live.
            self._queue = PacketQueue(options.queue, options.length, options.buffer)
            self._log = PacketLog(options.queue, _LOG_BUFFER)
            rules = Rules(options.table, options.queue, options.queue, bypass=options.bypass)
            try:
                rules.install(self._claimed())
                rules.watch_replies(wanted=self._has_local_server())
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
        if self._queue is None or self._log is None or self._rules is None:
            raise DatapathError("the datapath has been closed")
        loop = asyncio.get_running_loop()
        self._failure = loop.create_future()
        readers = {
            self._queue.fileno(): self._packets,
            self._log.fileno(): self._replies,
            self._rules.fileno(): self._rules_changed,
            self._routes.fileno(): self._routes_changed,
        }
        for each in self._path_errors.sockets if self._path_errors else ():
            readers[each.fileno()] = self._routes_changed
        for descriptor, callback in readers.items():
            loop.add_reader(descriptor, callback)
        self._tick()
        try:
            await self._failure
        finally:
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
                if self.options.on_stop == "open" or self.options.bypass or not self._keys:
                    rules.remove()
                else:
                    rules.watch_replies(wanted=False)
            finally:
                rules.close()
        self._close_sockets()
        self._routes.close()

    def _close_sockets(self) -> None:
        for each in (self._queue, self._log, self._sender, self._path_errors):
            if each is not None:
                each.close()
        self._queue = self._log = self._sender = self._path_errors = None

    # --- packets ---

    def _packets(self) -> None:
        """Carry what waits in the queue, up to a batch."""
        queue, sender = self._queue, self._sender
        if queue is None or sender is None:
            return
        self._replies()  # they were sent before what waits arrived: state by state, in order
        waiting = queue.read(_BATCH)
        if not waiting:
            return
        self.received += len(waiting)
        now = self._clock()
        receive = self._director.receive
        outgoing: list[bytes] = []
        send = outgoing.append
        runs: list[tuple[bytes, bytes]] = []
        answer, last = DROP, b""
        try:
            for number, packet, mark in waiting:
                verdict = receive(packet, now, mark)
                if isinstance(verdict, Transmit):
                    made, route, _ = verdict
                    if len(made) <= route.mtu:
                        send(made)
                    else:
                        sender.send_large(made, route.mtu)
                    own = DROP
                elif isinstance(verdict, (Deliver, NotOurs)):
                    own = ACCEPT
                else:
                    if isinstance(verdict, Reply):
                        send(verdict.packet)
                    own = DROP
                if own is not answer:
                    if last:
                        runs.append((answer, last))
                    answer = own
                last = number
        finally:  # whatever happens, nothing may wait for ever
            runs.append((answer, waiting[-1][0]))
            sender.send(outgoing)
            queue.answer(runs)
        self.sent += len(outgoing)

    def _replies(self) -> None:
        """Tell the director what local servers have sent."""
        if self._log is None:
            return
        while copies := self._log.read():
            now = self._clock()
            for packet in copies:
                self._director.replied(packet, now)

    # --- time, and changes to the host ---

    def _tick(self) -> None:
        """End what is due, and come again when something may be."""
        now = self._clock()
        try:
            self._director.expire(now)
            if self._leaving and self._forget_left() and self._rules is not None:
                self._rules.update(self._claimed())
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
        if self._path_errors is not None:
            self._path_errors.drain()
        if "routes" not in self._timers:
            self._later("routes", _SETTLE_S)

    def _refresh_routes(self) -> None:
        del self._timers["routes"]
        try:
            if self._routes.refresh():
                self._director.routes_changed()
        except DatapathError as err:
            self._fail(err)

    def _rules_changed(self) -> None:
        """Put the table back where another program's ``flush ruleset`` took it."""
        rules = self._rules
        if rules is not None and rules.lost():
            try:
                rules.install(self._claimed())
            except DatapathError as err:
                self._fail(err)

    def _fail(self, err: DatapathError) -> None:
        """Let `run` raise `err`."""
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(err)
