"""A daemon killed in the middle of its work: nothing is lost, and the next one goes on."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from xdp_daemon import Daemon, program_on, service
from xdp_network import PORT, SERVERS, VIP, VIP6, Network, until

pytestmark = pytest.mark.integration


class Peer:
    """A connection of the client's."""

    def __init__(self, network: Network, vip: str = VIP) -> None:
        self.socket = network.connect(vip)
        self.file = self.socket.makefile("rwb")
        self.server = self.file.readline().decode().strip()
        host = f"[{vip}]" if ":" in vip else vip
        own = self.socket.getsockname()
        self.name = f"[{own[0]}]:{own[1]}" if ":" in vip else f"{own[0]}:{own[1]}"
        self.virtual = f"{host}:{PORT}"

    def ask(self, size: int = 1000) -> None:
        """Have it answer with so many bytes."""
        self.file.write(b"%d\n" % size)
        self.file.flush()
        assert len(self.file.read(size)) == size


class Pinging:
    """A client that sends a datagram every two milliseconds, and counts the answers."""

    def __init__(self, network: Network) -> None:
        with network.client.entered():
            self.socket = socket.socket(type=socket.SOCK_DGRAM)
        self.socket.connect((VIP, PORT))
        self.socket.settimeout(1)
        self.sent = 0
        self.answers: set[bytes] = set()
        self._going = True
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while self._going:
            self.socket.send(b"%d" % self.sent)
            self.sent += 1
            time.sleep(0.002)

    def _receive(self) -> None:
        try:
            while self._going or len(self.answers) < self.sent:
                self.answers.add(self.socket.recv(100).split()[1])
        except TimeoutError:
            pass

    def end(self) -> int:
        """Stop, and return how many had no answer."""
        self._going = False
        for thread in self._threads:
            thread.join()
        self.socket.close()
        return self.sent - len(self.answers)


def entries(daemon: Daemon) -> dict[str, tuple[str, str, str]]:
    """Return what the table says of each client, without times."""
    return {
        client: (each["virtual"], each["server"], each["state"])
        for client, each in daemon.connections().items()
    }


@pytest.mark.parametrize("mode", ["generic", "native"])
def test_nothing_is_lost(network, bpffs, mode):
    services = [service(), service(VIP6), service(protocol="udp")]
    options = {"mode": mode}
    daemon = Daemon(network, bpffs / "pins", services, **options).ready()
    peers = [Peer(network) for _ in range(4)] + [Peer(network, VIP6) for _ in range(2)]
    pinging = Pinging(network)
    for peer in peers:
        peer.ask()
    until(lambda: daemon.active() == [2, 2])
    time.sleep(2.5)  # the counts of a listing are folded every two seconds
    before, status = entries(daemon), daemon.call("status")
    attached = program_on(network)
    assert len(before) == 7
    daemon.kill()
    assert program_on(network) == attached
    for peer in peers:
        peer.ask(100_000)
    peers.pop(0).socket.close()
    daemon = Daemon(network, bpffs / "pins", services, **options).ready()
    assert program_on(network) == attached
    for peer in peers:
        peer.ask(100_000)
    assert pinging.end() == 0
    after = entries(daemon)
    (changed,) = [client for client in before if after[client] != before[client]]
    assert {**before, changed: after[changed]} == after
    assert after[changed][2] == "FIN_WAIT"
    assert daemon.active() == [1, 2]
    assert sorted(each.get("inactive", 0) for each in daemon.servers().values()) == [0, 1]
    assert all(
        each["expires_s"] > 890
        for each in daemon.connections().values()
        if each["state"] == "ESTABLISHED"
    )
    for old, new in zip(status["services"], daemon.call("status")["services"], strict=True):
        for one, other in zip(old["servers"], new["servers"], strict=True):
            assert one["stats"]["conns"] == other["stats"]["conns"]
            if one["stats"]["conns"]:
                assert one["stats"]["inpkts"] < other["stats"]["inpkts"]
                assert one["stats"]["inbytes"] < other["stats"]["inbytes"]
    Peer(network).ask()
    daemon.stop()
    assert program_on(network) == ""
    assert list(bpffs.glob("pins/*")) == []


def test_a_connection_that_began_meanwhile_waits_for_the_next_daemon(network, bpffs):
    daemon = Daemon(network, bpffs / "pins", [service()]).ready()
    Peer(network).ask()
    daemon.kill()
    with network.client.entered():
        peer = socket.socket()
    network.held.append(peer)
    peer.setblocking(False)
    assert peer.connect_ex((VIP, PORT)) != 0
    began = time.monotonic()
    daemon = Daemon(network, bpffs / "pins", [service()]).ready()
    peer.settimeout(30)
    assert peer.recv(7) in (b"server0", b"server1")
    # Its first packet was not lost, or the client would have had to send it again: after 1, 3, 7 s.
    listed = daemon.connections()
    assert len(listed) == 2, listed
    assert time.monotonic() - began < 10


def test_what_had_ended_is_gone(network, bpffs):
    services = [service(protocol="udp", settings={"timeout_udp": 1})]
    daemon = Daemon(network, bpffs / "pins", services).ready()
    pinging = Pinging(network)
    until(lambda: pinging.answers)
    pinging.end()
    daemon.kill()
    time.sleep(1.5)
    daemon = Daemon(network, bpffs / "pins", services).ready()
    assert daemon.connections() == {}
    assert "0 connections go on where the last run left them, 1 have ended" in daemon.stop()


def test_templates_of_persistence_survive(network, bpffs):
    services = [service(persistent=100)]
    daemon = Daemon(network, bpffs / "pins", services).ready()
    first = Peer(network)
    daemon.kill()
    first.ask()
    daemon = Daemon(network, bpffs / "pins", services).ready()
    listed = daemon.connections()
    (template,) = [each for client, each in listed.items() if client.endswith(":0")]
    assert 90 < template["expires_s"] < 100
    assert template["state"] == "ASSURED"
    assert template["server"].startswith(SERVERS[int(first.server[-1])])
    assert {Peer(network).server for _ in range(4)} == {first.server}
    assert sorted(s["persistent"] for s in daemon.servers().values()) == [0, 1]


def test_a_service_that_is_no_more_takes_its_connections_along(network, bpffs):
    services = [service(), service(VIP6)]
    daemon = Daemon(network, bpffs / "pins", services).ready()
    peers = Peer(network), Peer(network, VIP6)
    daemon.kill()
    daemon = Daemon(network, bpffs / "pins", services[:1]).ready()
    assert entries(daemon).keys() == {peers[0].name}
    peers[0].ask()
    # Its id and slot are free.
    daemon.call("add_service", service={"tcp": f"[{VIP6}]:{PORT}"})
    assert daemon.call("status")["lost"]["slots_full"] == 0


def test_keep_leaves_the_program_at_work(network, bpffs):
    # There is room for eight in the program; the others are in the state file.
    options: dict[str, Any] = {"slots4": 8, "mode": "generic"}
    daemon = Daemon(network, bpffs / "pins", [service()], "--keep", **options).ready()
    peers = [Peer(network) for _ in range(12)]
    until(lambda: daemon.active() == [6, 6])
    assert daemon.call("status")["lost"]["slots_full"] >= 4
    before, attached = entries(daemon), program_on(network)
    assert "the program stays on eth0" in daemon.stop()
    assert program_on(network) == attached
    daemon = Daemon(network, bpffs / "pins", [service()], **options).ready()
    assert entries(daemon) == before
    for peer in peers:
        peer.ask()
    daemon.stop()
    assert program_on(network) == ""


def test_after_a_clean_stop_the_state_file_has_everything(network, bpffs):
    daemon = Daemon(network, bpffs / "pins", [service()]).ready()
    peers = [Peer(network) for _ in range(4)]
    for _ in range(20):
        for peer in peers:
            peer.ask()
        time.sleep(0.1)
    before = daemon.connections()
    daemon.stop()
    assert program_on(network) == ""
    assert not (bpffs / "pins").exists()
    daemon = Daemon(network, bpffs / "pins", [service()]).ready()
    after = daemon.connections()
    assert after.keys() == before.keys()
    for client, each in after.items():
        assert before[client]["expires_s"] - 20 < each["expires_s"] < before[client]["expires_s"]
    for peer in peers:
        peer.ask()


def test_without_a_bpf_file_system_it_goes_on_and_says_so(network):
    daemon = Daemon(network, None, [service()]).ready()
    said = daemon.log.read_text()
    assert "is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf; until then" in said
    daemon.stop()
    refused = Daemon(network, None, [service()], "--keep").refused()
    assert "is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf" in refused
    place = Path(network.place)
    refused = Daemon(network, place, [service()]).refused()
    assert f"{place} is not on a BPF file system" in refused
