"""More new connections than Python takes: none is placed twice, and what is lost is counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from test_xdp_life_crash import Peer
from xdp_daemon import Daemon, service
from xdp_decap import DecapNetwork
from xdp_flood import Flood, Watch, dropped, number, received
from xdp_network import built, until

from lvskit.datapath.memory.stack import ACK, SYN

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
KNOWN = range(1_000_000, 1_000_100)  # clients whose connections are established
MANY = 150_000
OPENED = "misses", "placed"  # new connections: through Python, or by a ring in the program
AT_ONCE = 5_000  # fewer than the ring has room for


@pytest.fixture
def network(bpf: None, tmp_path: Path) -> Iterator[DecapNetwork]:
    with built(DecapNetwork, tmp_path, needs=["tcpdump"]) as made:
        yield made


def mixed(flood: Flood, count: int) -> list[bytes]:
    """Return first packets of so many clients; one in ten is of a known connection."""
    frames = flood.frames(range(count), SYN)
    acks = flood.frames(KNOWN, ACK)
    tens = [frames[at : at + 10] for at in range(0, count, 10)]
    for at, ten in enumerate(tens):
        ten.append(acks[at % len(acks)])
    return [frame for ten in tens for frame in ten]


def settled(daemon: Daemon) -> dict[str, Any]:
    """Wait until Python has taken what the program had told it; return the status."""
    status = daemon.call("status")
    while True:
        time.sleep(0.1)
        before, status = status, daemon.call("status")
        if status["datapath"]["figures"] == before["datapath"]["figures"]:
            return status


def settle_in(daemon: Daemon, flood: Flood) -> None:
    """Have known connections established."""
    flood.send(flood.frames(KNOWN, SYN))
    until(lambda: daemon.call("status")["entries"] >= len(KNOWN))
    flood.send(flood.frames(KNOWN, ACK))
    until(lambda: daemon.call("status")["half_open"] == 0)

    def all_pass() -> bool:
        """It takes a moment after the start until it is known where servers are."""
        before = ledger(daemon.call("status"), "forwarded")
        flood.send(flood.frames(KNOWN, ACK))
        return ledger(daemon.call("status"), "forwarded") - before == len(KNOWN)

    until(all_pass, 10)


def rush(flood: Flood, frames: list[bytes], peers: list[Peer]) -> None:
    """Send a flood; meanwhile connections with a real end go on."""
    sending = threading.Thread(target=flood.send, args=[frames])
    sending.start()
    while sending.is_alive():
        for peer in peers:
            peer.ask(10_000)
    sending.join()


def ledger(status: dict[str, Any], key: str) -> int:
    """Return a count of a status: of the program's, or of what was lost."""
    found: int = {**status["datapath"]["figures"], **status["lost"], **status}[key]
    return found


def again(flood: Flood, daemon: Daemon, clients: list[int], known: int) -> None:
    """Have clients send their first packets again, no more at once than there is room for."""
    for start in range(0, len(clients), AT_ONCE):
        some = clients[start : start + AT_ONCE]
        flood.send(flood.frames(some, SYN))
        known += len(some)
        until(lambda known=known: daemon.call("status")["entries"] >= known, 10)


def taken(daemon: Daemon) -> set[int]:
    """Return those of the flood's clients that have a connection."""
    return {number(each["client"]) for each in daemon.call("connections")} - {*KNOWN, -1}


def known_packets(watch: Watch) -> int:
    return sum(watch.seen[client].total() for client in KNOWN)


@pytest.mark.parametrize(
    ("mode", "scheduler"), [("native", "wlc"), ("generic", "wlc"), ("native", "rr")]
)
def test_what_is_not_taken_is_counted_and_succeeds_later(network, bpffs, mode, scheduler):
    # A small ring, so that it overflows on every machine.
    options: dict[str, Any] = {"mode": mode, "ring": 1 << 20}
    services = [service(scheduler=scheduler)]
    daemon = Daemon(network, bpffs / "pins", services, "--size", "524288", **options).ready()
    peers = [Peer(network) for _ in range(4)]
    with closing(Flood(network)) as flood:
        settle_in(daemon, flood)
        frames = mixed(flood, MANY)
        before, came, wire = settled(daemon), received(network.director), dropped(network)
        with Watch(network) as watch:
            rush(flood, frames, peers)
            after = settled(daemon)
        came, wire = received(network.director) - came, dropped(network) - wire
        grown = {
            name: ledger(after, name) - ledger(before, name)
            for name in (*OPENED, "ring_full", "forwarded", "entries", "slots_full", "not_framed")
        }
        # Every packet is in one of the counts; some were about neighbours.
        counted = grown["misses"] + grown["ring_full"] + grown["forwarded"]
        assert counted <= came <= counted + 100
        assert grown["ring_full"] > 0
        assert grown["entries"] == grown[OPENED[scheduler == "rr"]]
        assert grown["slots_full"] == grown["not_framed"] == 0
        # What the servers had: all of the known connections, and one packet of each other one.
        served = taken(daemon)
        assert len(served) == grown["entries"]
        assert MANY // 10 - known_packets(watch) <= wire
        assert watch.seen.keys() <= served | {*KNOWN}
        assert len(served - watch.seen.keys()) <= wire
        assert all(watch.seen[client].total() == 1 for client in watch.seen.keys() - KNOWN)
        assert all(len(servers) == 1 for servers in watch.seen.values())

        wire = dropped(network)
        with Watch(network) as later:
            flood.send(flood.frames(sorted(served)[:1000], SYN))
            again(flood, daemon, sorted(set(range(MANY)) - served), after["entries"])
            rush(flood, flood.frames(KNOWN, ACK), peers)
            end = settled(daemon)
        wire = dropped(network) - wire
        for client, servers in later.seen.items():
            assert len(servers) == 1
            assert servers.keys() == watch.seen.get(client, servers).keys()
        assert len(set(range(MANY)) - served - later.seen.keys()) <= wire
        assert end["entries"] == MANY + len(KNOWN) + len(peers)
        opened = [each["counters"]["conns"] for each in daemon.servers().values()]
        assert sum(opened) == end["entries"]
        assert max(opened) - min(opened) <= 1  # by the counts of each moment
        assert ledger(end, "ring_full") == ledger(after, "ring_full")


@pytest.mark.parametrize("scheduler", ["wlc", "rr"])
def test_a_full_table_sheds_half_open_connections_alone(network, bpffs, scheduler):
    services, size = [service(scheduler=scheduler)], 20_000
    daemon = Daemon(network, bpffs / "pins", services, "--size", f"{size}").ready()
    peers = [Peer(network) for _ in range(4)]
    with closing(Flood(network)) as flood:
        settle_in(daemon, flood)
        frames = mixed(flood, MANY)
        before, wire = settled(daemon), dropped(network)
        with Watch(network) as watch:
            rush(flood, frames, peers)
            after = settled(daemon)
        wire = dropped(network) - wire
        assert after["entries"] == size
        opened = sum(ledger(after, name) - ledger(before, name) for name in OPENED)
        assert after["shed"] == before["entries"] + opened - size > 0
        assert after["refused"] == 0
        # The program places faster than Python sheds, until it has no slot left.
        assert ledger(after, "slots_full") == 0 or scheduler == "rr"
        assert MANY // 10 - known_packets(watch) <= wire
        assert all(watch.seen[client].total() == 1 for client in watch.seen.keys() - KNOWN)
        for peer in [*peers, Peer(network)]:
            peer.ask()
        states = Counter(each["state"] for each in daemon.call("connections"))
        established = len(KNOWN) + len(peers) + 1
        assert states == {"ESTABLISHED": established, "SYN_RECV": size - established}


@pytest.mark.parametrize("scheduler", ["wlc", "rr"])
def test_a_daemon_killed_in_a_flood(network, bpffs, scheduler):
    """The next one goes on with what the former one had begun, and with what waits."""
    services, size = [service(scheduler=scheduler)], ("--size", "524288")
    daemon = Daemon(network, bpffs / "pins", services, *size).ready()
    peers = [Peer(network) for _ in range(4)]
    with closing(Flood(network)) as flood:
        settle_in(daemon, flood)
        frames, wire = mixed(flood, MANY), dropped(network)
        with Watch(network) as watch:
            sending = threading.Thread(target=rush, args=[flood, frames, peers])
            sending.start()
            time.sleep(0.3)
            daemon.kill()
            daemon = Daemon(network, bpffs / "pins", services, *size).ready()
            sending.join()
            entries, served = settled(daemon)["entries"], taken(daemon)
            assert entries == len(served) + len(KNOWN) + len(peers)
            again(flood, daemon, sorted(set(range(MANY)) - served), entries)
            end = settled(daemon)
        wire = dropped(network) - wire
        assert end["entries"] == MANY + len(KNOWN) + len(peers)
        assert end["half_open"] == MANY
        assert all(len(servers) == 1 for servers in watch.seen.values())
        assert MANY // 10 - known_packets(watch) <= wire
        assert len(set(range(MANY)) - watch.seen.keys()) <= wire
