"""Connections that the program has placed by a ring: the director knows them as its own."""

from __future__ import annotations

import socket

import pytest
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.layout import Reason, RingKind
from lvskit_datapath_xdp.loader import Map, MapSpec, MapType
from lvskit_datapath_xdp.placed import opening
from xdp_network import PORT, SERVERS, SERVERS6, VIP, VIP6, Running, until

from lvskit import TCP, UDP, Flow, ServiceKey
from lvskit.core.packet import parse

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize(("vip", "family"), [(VIP, socket.AF_INET), (VIP6, socket.AF_INET6)])
def test_the_packet_that_stands_for_the_first_one(protocol, vip, family):
    address = socket.inet_pton(family, vip)
    client = socket.inet_pton(family, {VIP: "10.9.8.7", VIP6: "fd09::7"}[vip])
    key = ServiceKey.of(protocol, address, PORT)
    packet = opening(key, client.ljust(16, b"\0"), (1234).to_bytes(2, "big"), 0x02)
    parsed = parse(packet)
    assert parsed is not None
    assert parsed.flow == Flow(protocol, client, 1234, address, PORT)
    assert parsed.flags == (2 if protocol == TCP else 0)
    assert parsed.length == len(packet)


def by_ring(running: Running) -> None:
    """Have the program place the connections of the only service, by turns."""
    datapath = running.datapath

    def work() -> None:
        ((key, service),) = datapath._services.ids.items()
        servers = [entry.number for entry in datapath._servers.entries.values()]
        with Map.create(MapSpec("ring", MapType.ARRAY, 4, layout.RING.size, 1)) as ring:
            room = (0,) * (layout.RING_CAPACITY - len(servers))
            ring.update(0, layout.RING.pack(0, len(servers), *servers, *room))
            datapath._engine.maps["rings"].update(service, ring)
        written = datapath._services._written
        name, flags, _ = layout.SERVICE.unpack(written[key])
        value = layout.SERVICE.pack(name, flags, RingKind.ROUND)
        port = key.port.to_bytes(2, "big")
        packed = layout.SERVICE_KEY.pack(key.address, port, key.protocol, key.version)
        datapath._engine.maps["services"].update(packed, value)

    running.do(work)


def answerer(peer: socket.socket) -> str:
    return peer.makefile("rb").readline().decode().strip()


@pytest.mark.parametrize(("vip", "servers"), [(VIP, SERVERS), (VIP6, SERVERS6)], ids=["v4", "v6"])
def test_tcp_placed_by_the_program(network, direct, vip, servers):
    running = direct(mode="generic")
    host = f"[{vip}]" if ":" in vip else vip
    running.add({"tcp": f"{host}:{PORT}", "scheduler": "wlc"}, servers)
    by_ring(running)
    peers = [network.connect(vip) for _ in range(8)]
    names = [answerer(peer) for peer in peers]
    assert names in (["server0", "server1"] * 4, ["server1", "server0"] * 4)
    until(lambda: running.active() == 8)
    assert running.datapath._bridge.received == 0
    # Each is at the server that the director believes it to be at.
    believed = {entry["client"]: entry["server"] for entry in running.entries()}
    for peer, name in zip(peers, names, strict=True):
        address, port = peer.getsockname()[:2]
        client = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        expected = servers[int(name[-1])]
        assert expected in believed[client]
    running.call("status")
    packets = sum(s.counters.inpkts for each in running.director.services for s in each.servers)
    placed = running.do(lambda: running.datapath._engine.reason(Reason.PLACED))
    assert (placed, packets) == (8, 8 * 3)  # of each: SYN, ACK, and the ACK of the name
    for peer in peers:
        peer.close()
    until(lambda: running.inactive() == 8)


def test_udp_that_the_director_has_already_stays_where_it_is(network, direct):
    running = direct(mode="generic", slots4=8)
    running.add({"udp": f"{VIP}:{PORT}", "scheduler": "rr"}, SERVERS)
    with network.client.entered():
        peers = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(10)]
    network.held += peers
    for peer in peers:
        peer.settimeout(3)
        peer.connect((VIP, PORT))

    def turn() -> list[bytes]:
        answers = []
        for peer in peers:
            peer.send(b"?")
            answers.append(peer.recv(100))
        return answers

    first = turn()  # two of them have no slot
    by_ring(running)
    slots = running.datapath._slots[4]
    # Room for those two, which the program then gives to servers by turns.
    running.do(lambda: [slots.release(each) for each in list(slots.numbers)[:6]])
    # One datagram of each went astray before the director could say so; no more do.
    turn()
    assert turn() == first
    assert running.inactive() == 10
