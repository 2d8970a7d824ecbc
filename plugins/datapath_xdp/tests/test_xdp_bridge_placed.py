"""Connections that the program has placed by a ring: the director knows them as its own."""

from __future__ import annotations

import itertools
import socket
import threading
import time

import pytest
from lvskit_datapath_xdp.layout import Reason
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
    flow = Flow(protocol, client, 1234, address, PORT)
    packet = opening(key, flow.key, 0x02)
    parsed = parse(packet)
    assert parsed is not None
    assert parsed.flow == flow
    assert parsed.flags == (2 if protocol == TCP else 0)
    assert parsed.length == len(packet)


def placed(running: Running) -> int:
    """Return how many connections the program has placed."""
    return running.do(lambda: running.datapath._engine.reason(Reason.PLACED))


def answerer(peer: socket.socket) -> str:
    return peer.makefile("rb").readline().decode().strip()


@pytest.mark.parametrize(("vip", "servers"), [(VIP, SERVERS), (VIP6, SERVERS6)], ids=["v4", "v6"])
def test_tcp_placed_by_the_program(network, direct, vip, servers):
    running = direct(mode="generic")
    host = f"[{vip}]" if ":" in vip else vip
    running.add({"tcp": f"{host}:{PORT}", "scheduler": "rr"}, servers)
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
    assert placed(running) == 8
    assert packets >= 8 * 3  # of each: SYN, ACK, the ACK of the name, and what TCP sends again
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
    slots = running.datapath._slots[4]
    # Room for those two, which the program then gives to servers by turns.
    running.do(lambda: [slots.release(each) for each in list(slots.known())[:6]])
    # One datagram of each went astray before the director could say so; no more do.
    turn()
    assert turn() == first
    assert running.inactive() == 10


def test_counts_are_right_at_once(network, direct):
    running = direct(mode="generic")
    running.add({"tcp": f"{VIP}:{PORT}", "scheduler": "rr"}, SERVERS)
    late = []
    for number in range(1, 21):
        network.connect()
        began = time.monotonic()
        until(lambda number=number: running.do(lambda: actives(running)) == number)
        late.append(time.monotonic() - began)
    assert sorted(late)[10] < 0.01
    assert placed(running) == 20


def actives(running: Running) -> int:
    return sum(s.activeconns for each in running.director.services for s in each.servers)


def test_a_ring_changes_under_traffic_and_nobody_notices(network, direct):
    """Connections are opened all the time while weights change; all of them live, and are known."""
    running = direct(mode="generic")
    service = {"tcp": f"{VIP}:{PORT}", "scheduler": "wrr"}
    running.add(service, SERVERS)
    peers, ended = [], threading.Event()

    def open_some() -> None:
        while not ended.is_set():
            peers.append(network.connect())

    opener = threading.Thread(target=open_some)
    opener.start()
    try:
        for weight, address in itertools.product(range(1, 11), SERVERS):
            server = {"address": address, "weight": weight}
            running.call("edit_server", service=service, server=server)
            time.sleep(0.02)
    finally:
        ended.set()
        opener.join()
    assert len(peers) > 40
    until(lambda: running.active() == len(peers))
    believed = {entry["client"]: entry["server"] for entry in running.entries()}
    for peer in peers:
        address, port = peer.getsockname()
        assert believed[f"{address}:{port}"] == f"{SERVERS[int(answerer(peer)[-1])]}:{PORT}"
    assert placed(running) == len(peers)
    # And the turns of the program are the scheduler's.
    (ring,) = running.datapath._rings.by_id.values()
    assert running.do(lambda: (ring.memory.turns, ring.choices)) == (len(peers), len(peers))


def test_a_client_keeps_its_server_by_hash(network, direct):
    running = direct(mode="generic")
    running.add({"tcp": f"{VIP}:{PORT}", "scheduler": "mh"}, SERVERS)
    names = {answerer(network.connect()) for _ in range(6)}
    assert len(names) == 1
    assert placed(running) == 6
