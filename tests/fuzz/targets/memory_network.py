"""The simulated network: any packet on its wire comes to rest, and raises nothing."""

from __future__ import annotations

from fuzzkit import traffic
from fuzzkit.source import Bytes
from fuzzkit.traffic import Ends, Sent
from fuzzkit.world import PLUGINS

from lvskit import Director, ServerSettings, ServiceKey, ServiceSettings
from lvskit.datapath.memory import DirectorHost, Host, Network
from lvskit.datapath.memory.server import RealServerHost, Services
from lvskit.testing.packets import address
from lvskit.types import SCTP, TCP, UDP

_MOST_HOPS = 10_000
_VIPS = {4: "192.0.2.1", 6: "2001:db8::1"}


class _Counted(Network):
    """Lets nothing go round for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.hops = 0

    def send(self, packet: bytes, next_hop: bytes) -> None:
        self.hops += 1
        assert self.hops < _MOST_HOPS, "packets beget packets"
        assert 0 < len(packet) <= 65535
        super().send(packet, next_hop)


def _build() -> tuple[_Counted, DirectorHost]:
    network = _Counted()
    vips = [f"{_VIPS[4]}/32", f"{_VIPS[6]}/128"]
    host = DirectorHost(network, ["192.0.2.254/24", "2001:db8::fe/64", *vips])
    host.director = Director(PLUGINS, host.routes, size=16)
    RealServerHost(network, ["192.0.2.11/24", "2001:db8::11/64"], vips, Services({80: b"hello"}))
    Host(network, ["192.0.2.50/24", "2001:db8::50/64"])
    for version, server in ((4, "192.0.2.11"), (6, "2001:db8::11")):
        for protocol in (TCP, UDP):
            key = ServiceKey.of(protocol, address(_VIPS[version]), 80)
            host.director.add_service(key, ServiceSettings(scheduler="rr"))
            host.director.add_server(key, address(server), None, ServerSettings())
    return network, host


def check(data: bytes) -> None:
    source = Bytes(data)
    network, host = _build()
    identification = 0
    while source.more() and identification < 32:
        identification += 1
        version = source.pick((4, 6))
        target = address(source.pick((_VIPS, {4: "192.0.2.254", 6: "2001:db8::fe"}))[version])
        ends = Ends(
            source.pick((TCP, UDP, SCTP)),
            address({4: "192.0.2.50", 6: "2001:db8::50"}[version]),
            source.pick((1024, 80)),
            target,
            source.pick((80, 81)),
        )
        if source.number(0, 3):
            sent = traffic.sends(source, ends, identification)
        elif source.number(0, 1):
            sent = [
                traffic.error(source, Sent(traffic.segment(source, ends), True), ends.src, target)
            ]
        else:
            sent = [traffic.anything(source)]
        for each in sent:
            host.input(each.packet)
            network.run()
        network.advance(source.pick((0.0, 1.0, 100.0)))
