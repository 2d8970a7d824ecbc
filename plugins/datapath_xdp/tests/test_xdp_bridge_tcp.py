"""Real TCP and UDP through the datapath xdp, between hosts in network namespaces."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from lvskit_datapath_xdp.engine import Engine
from lvskit_datapath_xdp.layout import Reason
from lvskit_datapath_xdp.options import XdpOptions
from xdp_network import DIRECTOR, PORT, SERVERS, SERVERS6, VIP, VIP6, Running, until

from lvskit import DatapathError

pytestmark = pytest.mark.integration


def tcp(address: str = VIP, **settings: Any) -> dict[str, Any]:
    host = f"[{address}]" if ":" in address else address
    return {"tcp": f"{host}:{PORT}", "scheduler": "wlc", **settings}


def ask(peer: socket.socket, size: int = 0) -> str:
    """Return the name of who answers, after a download of `size` bytes."""
    file = peer.makefile("rwb")
    name = file.readline().decode().strip()
    if size:
        file.write(b"%d\n" % size)
        file.flush()
        assert len(file.read(size)) == size
    return name


def counted(running: Running, reason: Reason) -> int:
    return running.do(lambda: running.datapath._engine.reason(reason))


@pytest.mark.parametrize("mode", ["generic", "native"])
@pytest.mark.parametrize(
    ("vip", "servers"),
    [(VIP, SERVERS), (VIP6, SERVERS6), (VIP, SERVERS6), (VIP6, SERVERS)],
    ids=["4in4", "6in6", "4in6", "6in4"],
)
def test_tcp(network, direct, mode, vip, servers):
    running = direct(mode=mode)
    running.add(tcp(vip), servers)
    peers = [network.connect(vip) for _ in range(6)]
    assert {ask(peer, 300_000) for peer in peers} == {"server0", "server1"}
    assert {(s["active"], s.get("inactive", 0)) for s in running.servers().values()} == {(3, 0)}
    assert {entry["state"] for entry in running.entries()} == {"ESTABLISHED"}
    for peer in peers:
        peer.close()
    until(lambda: running.inactive() == 6)
    assert running.active() == 0
    # Python had the first packet of each connection, and nothing went the portable way.
    assert running.datapath._bridge.received == 6
    assert running.datapath._live.received == 0
    assert counted(running, Reason.STATE) == 12  # established, and finished
    running.call("status")
    counts = [s.counters for service in running.director.services for s in service.servers]
    assert [each.conns for each in counts] == [3, 3]
    assert all(each.inpkts > 50 and each.inbytes > 50 * 52 for each in counts)
    assert set(running.do(running.datapath.losses).values()) == {0}


def test_counts_are_right_at_once(network, direct):
    running = direct(mode="generic")
    running.add(tcp(), SERVERS)
    late = []
    for number in range(1, 21):
        network.connect()
        began = time.monotonic()
        until(lambda number=number: sum(s.activeconns for s in both(running)) == number)
        late.append(time.monotonic() - began)
    assert sorted(late)[10] < 0.01


def both(running: Running) -> list[Any]:
    return running.do(lambda: [s for each in running.director.services for s in each.servers])


def test_a_connection_lives_as_long_as_its_packets_come(network, direct):
    running = direct(mode="generic")
    running.add(tcp(), SERVERS)
    running.call("set_settings", settings={"timeout_established": 2})
    peer = network.connect()
    ask(peer)
    until(lambda: running.active() == 1)
    for _ in range(8):
        peer.sendall(b"1\n")
        time.sleep(0.5)
    left = running.entries()[0]["expires_s"]
    assert 0.9 < left < 2.0
    last = time.monotonic()
    while running.do(lambda: len(running.director.table)):
        time.sleep(0.02)
    assert left - 0.2 < time.monotonic() - last < left + 0.5
    assert running.do(lambda: list(running.datapath._slots[4].known())) == []


def test_udp(network, direct):
    running = direct(mode="native")
    running.add({"udp": f"{VIP}:{PORT}", "scheduler": "wlc"}, SERVERS)
    with network.client.entered():
        peers = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(4)]
    network.held += peers
    for peer in peers:
        peer.settimeout(3)
        peer.connect((VIP, PORT))
    answers = []
    for turn in range(5):
        for peer in peers:
            peer.send(b"%d" % turn)
            answers.append(peer.recv(100))
    names = [answer.split()[0] for answer in answers]
    assert names == names[:4] * 5
    assert sorted(set(names)) == [b"server0", b"server1"]
    assert running.inactive() == 4
    assert running.datapath._bridge.received == 4
    assert [s.counters.inpkts for s in both(running)] == [10, 10]


def test_a_removed_server_gets_nothing_until_it_is_back(network, direct):
    running = direct(mode="generic")
    service = tcp()
    running.add(service, SERVERS[:1])
    peer = network.connect()
    assert ask(peer, 10) == "server0"
    running.call("delete_server", service=service, server={"address": SERVERS[0]})
    peer.settimeout(0.5)
    peer.sendall(b"5\n")
    with pytest.raises(TimeoutError):
        peer.recv(5)
    assert counted(running, Reason.REMOVED) > 0
    running.call("add_server", service=service, server={"address": SERVERS[0]})
    peer.settimeout(5)
    assert len(peer.recv(5)) > 0
    assert running.active() == 1


def test_a_table_without_room_leaves_connections_to_the_portable_path(network, direct):
    running = direct(mode="generic", slots4=8)
    running.add(tcp(), SERVERS)
    peers = [network.connect() for _ in range(12)]
    assert {ask(peer, 1000) for peer in peers} == {"server0", "server1"}
    assert running.active() == 12
    assert running.do(running.datapath.losses)["slots_full"] >= 4
    assert running.datapath._live.received > 0


def test_a_restart_breaks_nothing(network, direct):
    services = [tcp(server=[{"address": address} for address in SERVERS])]
    running = direct(services=services, mode="generic")
    peers = [network.connect() for _ in range(4)]
    files = [peer.makefile("rwb") for peer in peers]
    names = [file.readline() for file in files]
    assert len(set(names)) == 2
    running.stop()
    running = direct(services=services, mode="generic")
    until(lambda: len(running.datapath._neighbours.hops) == 2)
    for file in files:
        file.write(b"10\n")
        file.flush()
        assert len(file.read(10)) == 10
    assert running.active() == 4
    assert running.datapath._bridge.received == running.datapath._live.received == 0


def test_a_server_with_another_network_card_is_followed(network, direct):
    running = direct(mode="generic")
    running.add(tcp(), SERVERS[:1])
    peer = network.connect()
    assert ask(peer, 10) == "server0"
    time.sleep(1.1)  # the kernel does not believe in a change so soon: arp(7), locktime
    network.servers[0].run("ip link set eth0 address 02:00:00:00:00:77")
    with network.servers[0].entered(), socket.socket(type=socket.SOCK_DGRAM) as any_packet:
        any_packet.sendto(b"", (DIRECTOR, 9))  # so that it is heard of
    macs = running.datapath._neighbours.hops
    until(lambda: any(hop.ethernet[:6].hex() == "020000000077" for hop in macs.values()))
    peer.sendall(b"100\n")
    assert peer.recv(100)


def test_a_local_server_is_served_the_portable_way(network, direct):
    running = direct(mode="generic")
    service = tcp(scheduler="rr")
    running.add(service, SERVERS[:1])
    assert ask(network.connect(), 10) == "server0"
    running.call("add_server", service=service, server={"address": "10.1.0.1"})
    assert running.do(lambda: running.datapath._services.ids) == {}
    network.director.start(
        "python3", "-c", f"import socket; s = socket.create_server(('{VIP}', {PORT}))\n"
        "while True: s.accept()[0].sendall(b'director\\n')",
    )  # fmt: skip
    until(lambda: f"{VIP}:{PORT}" in network.director.run("ss -Hltn"))
    assert {ask(network.connect()) for _ in range(2)} == {"server0", "director"}


def test_a_lost_interface_ends_the_datapath(network, direct):
    running = direct(mode="generic")
    running.add(tcp(), SERVERS)
    network.director.run("ip link delete eth0")
    with pytest.raises(DatapathError, match="the interface eth0 has gone"):
        running.failure()


def test_another_program_on_the_interface_is_named(network):
    with network.director.entered():
        engine = Engine(XdpOptions(interface="eth0", pins=""), 64)
        engine.attach()
        try:
            with pytest.raises(
                DatapathError, match="an XDP program is attached to eth0 already: number"
            ):
                Running(network)
        finally:
            engine.close()


def test_the_host_is_left_as_it_was(network, direct):
    running = direct(mode="native", portable={"on_stop": "open"})
    running.add(tcp(), SERVERS)
    assert ask(network.connect(), 10)
    assert "xdp" in network.director.run("ip link show eth0")
    running.stop()
    assert "xdp" not in network.director.run("ip link show eth0")
    assert network.director.run("nft list ruleset") == ""
