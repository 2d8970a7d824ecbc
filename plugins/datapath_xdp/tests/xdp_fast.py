"""The program with its bridge, without a network, and a director alone beside it.

The program is run on each packet, and what it does not do itself goes the way it would go, to the
bridge or to the portable path.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from hypothesis import strategies as st
from lvskit_datapath_xdp.bridge import Bridge
from lvskit_datapath_xdp.engine import Engine
from lvskit_datapath_xdp.layout import Reason
from lvskit_datapath_xdp.loader import RingBuffer
from lvskit_datapath_xdp.neighbours import Hop
from lvskit_datapath_xdp.options import XdpOptions
from lvskit_datapath_xdp.rings import Rings
from lvskit_datapath_xdp.servers import Servers
from lvskit_datapath_xdp.services import Services
from lvskit_datapath_xdp.slots import Slots4, Slots6
from lvskit_datapath_xdp.timing import SeenWheel

import lvskit
from lvskit import (
    TCP,
    UDP,
    Director,
    Drop,
    Reply,
    Route,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    Transmit,
    Verdict,
    load_plugins,
)
from lvskit.datapath.memory import stack

VIP = bytes([192, 0, 2, 1])
HERE, HERE6 = bytes([10, 0, 0, 1]), bytes.fromhex("fd00") + bytes(13) + b"\1"
SERVERS = [bytes([10, 0, 0, 11]), bytes([10, 0, 0, 12]), HERE6[:-1] + b"\x0d"]
MACS = bytes.fromhex("020000000001020000000002")
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
PLUGINS = load_plugins()
KEYS = [ServiceKey.of(protocol, VIP, 80) for protocol in (TCP, UDP)]


class Frames:
    """Takes the frames that the bridge sends."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.sent: list[bytes] = []
        self.failed: dict[int, int] = {}

    def flush(self) -> None:
        self.sent += self.waiting
        self.waiting.clear()

    def close(self) -> None:
        pass


def director(scheduler: str, now: float, size: int = 64) -> Director:
    """Return a director with services of TCP and UDP."""
    routes = {4: Route(HERE, 1500), 16: Route(HERE6, 1500)}
    made = Director(PLUGINS, lambda address: routes[len(address)], size=size, now=now)
    for key in KEYS:
        made.add_service(key, ServiceSettings(scheduler=scheduler))
        for weight, address in enumerate(SERVERS, 1):
            made.add_server(key, address, None, ServerSettings(weight=weight))
    return made


class Fast:
    """The program, and a director behind it."""

    def __init__(self, scheduler: str, now: float, size: int = 64, slots: int = 256) -> None:
        self.now = now
        self.director = director(scheduler, now, size)
        self.director.wheel = SeenWheel(now, self.kept_until)
        options = XdpOptions(interface="lo", slots4=slots, slots6=8, pins="")
        self.engine = engine = Engine(options, size)
        maps = engine.maps
        self.slots = Slots4(maps["connections4"], engine)
        services = self.services = Services(maps["services"], lambda address: True)
        hop = Hop(engine.ifindex, MACS)
        self.servers = Servers(
            maps["servers"], maps["server_counters"], lambda address: hop, lambda ifindex: True
        )
        self.rings = Rings(maps["rings"], services, self.servers, self.director.table)
        self.portable: list[Verdict] = []
        self.bridge = Bridge(
            self.director, lambda: self.now, engine.clock(time.monotonic),
            RingBuffer(maps["misses"]), {4: self.slots, 6: Slots6(maps["connections6"], engine)},
            services, self.servers, self.rings, self.send,
        )  # fmt: skip
        self.update()
        self.frames = self.bridge._frames[engine.ifindex] = Frames()
        self.program = engine._loaded.programs["lvskit"]

    def update(self) -> None:
        """Do what the datapath does after each command, and every second."""
        servers, removed = servers_of(self.director), self.director.services.trash
        self.services.update(self.director.services)
        former = self.bridge.let_go(self.servers.update(servers, removed))
        self.rings.update([*servers, *removed], former)
        self.bridge.watch()

    def placed(self) -> int:
        """Return how many connections the program has placed."""
        return self.engine.reason(Reason.PLACED)

    def kept_until(self, entry: Any, now: float) -> float:
        return self.bridge.deadlines.until(entry, now)

    def send(self, verdict: Verdict, packet: bytes) -> bool:
        self.portable.append(verdict)
        return True

    def take(self, packet: bytes, now: float) -> object:
        """Return what becomes of a packet: bytes that are sent, or why not."""
        self.now = now
        removed = self.engine.reason(Reason.REMOVED)
        run = self.program.test_run(bytes(12) + b"\x08\x00" + packet)
        self.bridge.read()
        sent, self.frames.sent = self.frames.sent, []
        verdicts, self.portable = self.portable, []
        if run.verdict == 2:  # XDP_PASS
            assert not sent
            assert not verdicts
            return told(self.director.receive(packet, now))
        if self.engine.reason(Reason.REMOVED) > removed:
            assert (run.verdict, sent, verdicts) == (1, [], [])
            return Drop(lvskit.Reason.SERVER_REMOVED)
        if run.verdict in (3, 4):  # XDP_TX, XDP_REDIRECT
            assert not verdicts
            sent.append(run.packet)
        assert len(sent) + len(verdicts) == 1
        if verdicts:
            return told(verdicts[0])
        (frame,) = sent
        assert frame[:14] == MACS + (b"\x08\x00" if frame[14] >> 4 == 4 else b"\x86\xdd")
        return frame[14:]

    def close(self) -> None:
        self.bridge.close()
        self.rings.close()
        self.engine.close()


def servers_of(made: Director) -> list[Any]:
    return [server for service in made.services for server in service.servers]


def told(verdict: Verdict) -> object:
    return verdict.packet if isinstance(verdict, (Transmit, Reply)) else verdict


class Step(NamedTuple):
    """A packet of one of a few clients; no flags are a datagram."""

    client: int
    flags: int | None


def packet(step: Step) -> bytes:
    client = (bytes([198, 51, 100, 7]), 40_000 + step.client)
    if step.flags is None:
        ports = client[1].to_bytes(2, "big") + (80).to_bytes(2, "big")
        return stack.datagram(client[0], VIP, UDP, ports + b"\0\x0d\0\0what?")
    return stack.tcp(client, (VIP, 80), step.flags, 1, 0)


# The usual course more often than chance would have it.
FLAGS = st.sampled_from([SYN, SYN, ACK, ACK, PSH | ACK, FIN | ACK, RST, RST | ACK, SYN | ACK, 0])
STEPS = st.lists(st.builds(Step, st.integers(0, 4), st.one_of(st.none(), FLAGS)), max_size=60)


def state(made: Director) -> Iterator[object]:
    """Yield all that listings show."""
    for server in servers_of(made):
        yield server.name, server.activeconns, server.inactconns, server.counters
    for table in (made.table.tcp, made.table.udp):
        for key, connection in table.items():
            yield key, connection.server.name, connection.state_name
