"""A director with services of every kind, and everything that can happen to it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from fuzzkit import traffic, wire
from fuzzkit.source import Source
from fuzzkit.traffic import CLIENTS, Ends, Sent

from lvskit import (
    Deliver,
    Director,
    Drop,
    LvskitError,
    NotOurs,
    PluginError,
    Reply,
    Route,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    Transmit,
    Verdict,
    load_plugins,
)
from lvskit.core.packet import parse
from lvskit.datapath.fragments import fragment, fragment_v6
from lvskit.settings import NAMES
from lvskit.testing.packets import address
from lvskit.types import SCTP, TCP, UDP

PLUGINS: Final = load_plugins(strict=True)
VIP: Final = {4: address("192.0.2.1"), 6: address("2001:db8::1")}
ANY_PORT: Final = {4: address("192.0.2.2"), 6: address("2001:db8::2")}
OWN: Final = {4: address("192.0.2.254"), 6: address("2001:db8::fe")}
MARKS: Final = {4: 7, 6: 8}
_ROUTER: Final = {4: address("192.0.2.99"), 6: address("2001:db8::99")}
_UNREACHABLE, _LOCAL = 13, 14
_MTUS: Final = (1500, 1500, 1280, 576, 9000, 65535)
_TIMES: Final = (0.0, 0.25, 1.0, 2.0, 11.0, 31.0, 61.0, 130.0, 910.0)
_LONG: Final = 2000.0
_TICK_S: Final = 500.0  # statistics are folded seldom, or they take most of the time
_ENTRIES: Final = (64, 1, 2, 3, 8)
_VALUES: Final = (1, 0, 2, 3, None, 600)
_VERDICTS: Final = (Transmit, Deliver, Drop, Reply, NotOurs)


def route(target: bytes) -> Route | None:
    """Return the way to a packed address: its last byte says what it is like."""
    last, version = target[-1], 4 if len(target) == 4 else 6
    if last == _UNREACHABLE:
        return None
    return Route(OWN[version], _MTUS[last % len(_MTUS)], local=last == _LOCAL)


def variants(spec: Any) -> list[dict[str, Any]]:
    """Return option sets of a plugin: none, and each value of each option with few values."""
    found: list[dict[str, Any]] = [{}]
    if spec.options is None:
        return found
    hints = typing.get_type_hints(spec.options)
    for field in dataclasses.fields(spec.options):
        hint = hints[field.name]
        values: tuple[Any, ...] = typing.get_args(hint) if _is_literal(hint) else ()
        if hint is bool:
            values = (True, False)
        elif hint is int:
            values = (0, 1, 7, 65535)
        found += [{field.name: value} for value in values]
    pairs = [a | b for a, b in itertools.combinations(found[1:], 2)]
    return [each for each in (*found, *pairs) if _possible(spec, each)]


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal


def _possible(spec: Any, given: dict[str, Any]) -> bool:
    try:
        spec.options(**given)
    except ValueError:
        return False
    return True


FORWARDERS: Final = [
    (name, given)
    for name, provided in PLUGINS.forwarders.items()
    for given in variants(provided.spec)
]
SCHEDULERS: Final = [
    (name, given)
    for name, provided in PLUGINS.schedulers.items()
    for given in variants(provided.spec)
]


def _services(version: int) -> Iterator[tuple[ServiceKey, dict[str, Any]]]:
    mask = b"\xff\xff\xff\0" if version == 4 else b"\xff" * 8 + bytes(8)
    for protocol in (TCP, UDP, SCTP):
        for port, rest in (
            (80, {}),
            (5000, {"one_packet": protocol == UDP}),
            (21, {"persistence_s": 300}),
        ):
            with suppress(LvskitError):
                yield ServiceKey.of(protocol, VIP[version], port), rest
        with suppress(LvskitError):
            every = ServiceKey.of(protocol, ANY_PORT[version], 0)
            yield every, {"persistence_s": 50, "netmask": mask}
    yield ServiceKey.mark(MARKS[version], version), {}
    yield ServiceKey.mark(MARKS[version] + 10, version), {"persistence_s": 20, "netmask": mask}


SERVICES: Final = [*_services(4), *_services(6)]


class World:
    """One director; `step` lets one thing happen, `end` lets everything run out.

    Everything that a director promises is asserted on the way: no exception but `LvskitError`
    from commands and none from packets, no broken contract of a bundled plugin, a bounded table,
    emitted packets that are right.
    """

    def __init__(self, source: Source) -> None:
        self.now = 1000.0
        self.size = source.pick(_ENTRIES)
        self.director = Director(PLUGINS, route, size=self.size, now=self.now, report=self._report)
        self.director.tick_s = _TICK_S
        self._identifications = itertools.count(1)
        self._last: list[tuple[Ends, int]] = []
        self._emitted: list[Sent] = []
        self.keys: list[ServiceKey] = []
        for _ in range(source.number(1, 3)):
            self._add_service(source)

    def step(self, source: Source) -> None:
        """Let one thing happen."""
        kinds = (
            self._client, self._client, self._client, self._again, self._server, self._error,
            self._time, self._command, self._anything,
        )  # fmt: skip
        source.pick(kinds)(source)
        assert len(self.director.table) <= self.size

    def end(self) -> None:
        """Let time pass until nothing is left, and assert that nothing is."""
        self.director.defence.due = self.director.next_tick = math.inf  # nothing each second
        for _ in range(3):
            self.now += _LONG
            self.director.expire(self.now)
        assert len(self.director.table) == 0
        assert not list(self.director.connections(self.now))
        assert self.director.next_timer() is None
        for service in self.director.services:
            for server in service.servers:
                counts = server.activeconns, server.inactconns, server.persistconns
                assert counts == (0, 0, 0), server.name

    # --- packets ---

    def _client(self, source: Source) -> None:
        """A client sends a datagram to a service, or past it."""
        key = source.pick(self.keys or [SERVICES[0][0]])
        version = key.version
        protocol = key.protocol or source.pick((TCP, UDP, SCTP))
        client = source.pick(CLIENTS[version])
        virtual = key.address or VIP[version]
        port = source.pick((1024, 1025, 20, 0))
        vport = key.port if key.port and source.number(0, 7) else source.pick((80, 21, 20, 9))
        self._exchange(source, Ends(protocol, client, port, virtual, vport), key.fwmark)

    def _again(self, source: Source) -> None:
        """A client that has sent before sends another one."""
        if self._last:
            self._exchange(source, *source.pick(self._last))

    def _exchange(self, source: Source, ends: Ends, mark: int) -> None:
        self._last = [*self._last, (ends, mark)][-8:]
        for sent in traffic.sends(source, ends, next(self._identifications)):
            self.receive(sent, mark)

    def _server(self, source: Source) -> None:
        """A server answers: from the VIP by itself, or through the director."""
        if not self._last:
            return
        ends, mark = source.pick(self._last)
        ends = ends.back
        if self._emitted and source.number(0, 1):
            parsed = parse(source.pick(self._emitted).packet)
            if parsed is not None and len(parsed.dst) == len(ends.src):
                ends = Ends(ends.protocol, parsed.dst, parsed.dport or ends.sport, *ends[3:])
        for sent in traffic.sends(source, ends, next(self._identifications)):
            if source.number(0, 1):
                self.receive(sent, mark)
            else:
                self._replied(sent)

    def _replied(self, sent: Sent) -> None:
        """Let the director have an answer, which this host's stack has cut to its length."""
        parsed = parse(sent.packet)
        packet = sent.packet if parsed is None else sent.packet[: parsed.length]
        verdict = self.director.replied(packet, self.now)
        assert isinstance(verdict, _VERDICTS), verdict
        if isinstance(verdict, Transmit):  # along the host's own route, whose MTU it sees to
            wire.check(verdict.packet, sound=sent.sound)

    def _error(self, source: Source) -> None:
        """Somebody sends an ICMP error: about a client's, a server's or a tunnel's packet."""
        about = source.number(0, 2)
        if about == 2 and self._emitted:
            quoted = source.pick(self._emitted)
        elif self._last:
            ends, _ = source.pick(self._last)
            quoted = Sent(traffic.segment(source, ends if about else ends.back), True)
        else:
            return
        quote = quoted.packet
        version = 4 if quote[0] >> 4 == 4 else 6
        target = source.pick((quote[12:16] if version == 4 else quote[8:24], VIP[version]))
        sender = source.pick((_ROUTER[version], CLIENTS[version][0]))
        if len(target) == len(sender):
            self.receive(traffic.error(source, quoted, sender, target), 0)

    def _anything(self, source: Source) -> None:
        self.receive(traffic.anything(source), source.pick((0, MARKS[4], MARKS[6])))

    def receive(self, sent: Sent, mark: int) -> Verdict:
        """Let the director have a packet, and judge what it says."""
        return self._judge(self.director.receive(sent.packet, self.now, mark), sent)

    def _judge(self, verdict: Verdict, sent: Sent) -> Verdict:
        assert isinstance(verdict, _VERDICTS), verdict
        if isinstance(verdict, Reply):
            wire.check_error(verdict.packet, sound=sent.sound)
        elif isinstance(verdict, Transmit):
            self._check_transmit(verdict, sent)
        elif isinstance(verdict, Deliver) and verdict.packet:
            wire.check(verdict.packet, sound=sent.sound)
        return verdict

    def _check_transmit(self, verdict: Transmit, sent: Sent) -> None:
        packet, mtu = verdict.packet, verdict.route.mtu
        own = OWN[4 if packet[0] >> 4 == 4 else 6]
        self._emitted = [*self._emitted, Sent(packet, sent.sound)][-8:]
        wire.check(packet, sound=sent.sound, wrapped=own)
        if len(packet) <= mtu:
            return
        if packet[0] >> 4 == 4:
            assert not packet[6] & 0x40, "larger than the MTU, and DF is set"
            pieces = fragment(packet, mtu)
        else:
            pieces = fragment_v6(packet, max(mtu, 1280), 1)
        for piece in pieces:
            assert len(piece) <= max(mtu, 1280)
            wire.check(piece, sound=sent.sound, wrapped=own)

    def _report(self, error: PluginError) -> None:
        raise AssertionError(f"a bundled plugin broke its contract: {error}") from error

    # --- time and commands ---

    def _time(self, source: Source) -> None:
        self.now += source.pick(_TIMES)
        if source.number(0, 1):
            self.director.expire(self.now)

    def _add_service(self, source: Source) -> None:
        key, rest = source.pick(SERVICES)
        scheduler, options = source.pick(SCHEDULERS)
        with suppress(LvskitError):
            self.director.add_service(
                key, ServiceSettings(scheduler=scheduler, options=options, **rest)
            )
            self.keys.append(key)
        for _ in range(source.number(0, 3)):
            self._server_command(source, self.director.add_server, key)

    def _server_command(self, source: Source, command: Any, key: ServiceKey) -> None:
        """Add or edit a server."""
        method, options = source.pick(FORWARDERS)
        version = source.pick((key.version, key.version, 10 - key.version))
        if PLUGINS.forwarder(method).same_version:
            version = key.version  # what every way to configure a server asks for
        last = source.number(1, 16)
        server = address(f"198.51.100.{last}" if version == 4 else f"2001:db8:5::{last:x}")
        settings = ServerSettings(
            weight=source.pick((1, 2, 0, 100)),
            method=method,
            options=options,
            upper=source.pick((0, 0, 2)),
        )
        with suppress(LvskitError):
            command(key, server, source.pick((None, 8080)), settings)

    def _command(self, source: Source) -> None:
        """An operator does something."""
        director = self.director
        key = source.pick(self.keys or [SERVICES[0][0]])
        what = source.number(0, 7)
        with suppress(LvskitError):
            if what == 0:
                self._add_service(source)
            elif what == 1:
                self._server_command(source, director.add_server, key)
            elif what == 2:
                self._server_command(source, director.edit_server, key)
            elif what == 3:
                scheduler, options = source.pick(SCHEDULERS)
                settings = director.services.get(key).settings
                director.edit_service(
                    key, dataclasses.replace(settings, scheduler=scheduler, options=options)
                )
            elif what == 4:
                server = source.pick(director.services.get(key).servers or [None])
                if server is not None:
                    director.remove_server(key, server.address, server.port, self.now)
            elif what == 5:
                director.remove_service(key, self.now)
            elif what == 6:
                changes = {source.pick(NAMES): source.pick(_VALUES)}
                director.tune(changes, source.pick((None, key)))
            else:
                director.routes_changed()
                director.zero()


def play(source: Source) -> None:
    """Make a world, let everything happen that `source` has, and let it end."""
    world = World(source)
    while source.more():
        world.step(source)
    world.end()
