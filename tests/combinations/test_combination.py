"""One combination of plugins: what is there works, what is not is refused by name.

tox installs wheels of exactly one combination and says so in `LVSKIT_EXPECT_SCHEDULERS` and
`LVSKIT_EXPECT_FORWARDERS`; without them, all bundled plugins are expected.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pluggy
import pytest

import lvskit

BROUGHT_BY = {
    "lvskit-sched-hash": {"dh", "mh", "sh"},
    "lvskit-sched-locality": {"lblc", "lblcr"},
    "lvskit-sched-rr": {"rr", "wrr"},
    "lvskit-sched-spill": {"fo", "ovf"},
    "lvskit-sched-wlc": {"lc", "nq", "sed", "wlc"},
    "lvskit-fwd-tunnel": {"tunnel"},
    "lvskit-fwd-local": {"local"},
    "lvskit-fwd-direct": {"droute"},
    "lvskit-fwd-masq": {"masq"},
}
ALL_SCHEDULERS = [
    "dh", "fo", "lblc", "lblcr", "lc", "mh", "nq", "ovf", "rr", "sed", "sh", "wlc", "wrr",
]  # fmt: skip
EVEN = {"lc", "nq", "rr", "sed", "wlc", "wrr"}
"""Those that share the connections of one client evenly."""
ALL_FORWARDERS = ["droute", "local", "masq", "tunnel"]
BY_TOX = "LVSKIT_EXPECT_SCHEDULERS" in os.environ
SCHEDULERS = os.environ.get("LVSKIT_EXPECT_SCHEDULERS", " ".join(ALL_SCHEDULERS)).split()
FORWARDERS = os.environ.get("LVSKIT_EXPECT_FORWARDERS", " ".join(ALL_FORWARDERS)).split()
ABSENT_SCHEDULERS = [name for name in ALL_SCHEDULERS if name not in SCHEDULERS]
ABSENT_FORWARDERS = [name for name in ALL_FORWARDERS if name not in FORWARDERS]

SYN, ACK, RST = 0x02, 0x10, 0x04
MTU = 1500
VIP = {4: bytes([192, 168, 1, 176]), 6: bytes.fromhex("20010db8") + bytes(11) + b"\xb0"}
DIRECTOR = {4: bytes([192, 168, 1, 175]), 6: bytes.fromhex("20010db8") + bytes(11) + b"\xaf"}
CLIENT = {4: bytes([10, 0, 0, 9]), 6: bytes.fromhex("20010db8") + bytes(11) + b"\x09"}
PROTOCOL_INSIDE = {4: 4, 6: 41}


def key(version: int, protocol: int = lvskit.TCP) -> lvskit.ServiceKey:
    return lvskit.ServiceKey.of(protocol, VIP[version], 23)


def server(version: int, number: int) -> bytes:
    """Return the address of the real server `number`."""
    return VIP[version][:-1] + bytes([number])


def tcp(version: int, cport: int, flags: int) -> bytes:
    """Return a TCP segment of the client to the VIP."""
    segment = cport.to_bytes(2, "big") + bytes([0, 23]) + bytes(8)
    segment += bytes([0x50, flags]) + bytes(6)
    return ip(version, lvskit.TCP, segment)


def udp(version: int, cport: int, payload: bytes) -> bytes:
    """Return a UDP datagram of the client to the VIP."""
    length = (8 + len(payload)).to_bytes(2, "big")
    head = cport.to_bytes(2, "big") + bytes([0, 23]) + length + bytes(2)
    return ip(version, lvskit.UDP, head + payload)


def ip(version: int, protocol: int, payload: bytes) -> bytes:
    """Return the datagram that carries `payload` from the client to the VIP."""
    if version == 6:
        head = bytes([0x60, 0, 0, 0]) + len(payload).to_bytes(2, "big") + bytes([protocol, 64])
        return head + CLIENT[6] + VIP[6] + payload
    length = (20 + len(payload)).to_bytes(2, "big")
    head = bytes([0x45, 0]) + length + bytes([0, 0, 0x40, 0, 64, protocol, 0, 0])
    head += CLIENT[4] + VIP[4]
    return head[:10] + lvskit.checksum(head).to_bytes(2, "big") + head[12:] + payload


def director(local: bytes = b"") -> lvskit.Director:
    """Return a director with what is installed; `local` is an address of its own host."""

    def routes(address: bytes) -> lvskit.Route:
        source = DIRECTOR[4 if len(address) == 4 else 6]
        return lvskit.Route(source, MTU, local=address == local)

    return lvskit.Director(lvskit.load_plugins(strict=True), routes)


# --- what is there ---


def test_exactly_these_plugins_load() -> None:
    plugins = lvskit.load_plugins(strict=True)
    assert sorted(plugins.schedulers) == SCHEDULERS
    assert sorted(plugins.forwarders) == FORWARDERS
    assert plugins.failures == []


def test_exactly_these_distributions_are_installed() -> None:
    found = {point.dist.name for point in entry_points(group="lvskit")} - {"lvskit"}
    here = {*SCHEDULERS, *FORWARDERS}
    wanted = {name for name, brought in BROUGHT_BY.items() if brought <= here}
    assert found == wanted | (set() if BY_TOX else {"lvskit-datapath-xdp"})


@pytest.mark.skipif(not BY_TOX, reason="only tox knows what was to be installed")
def test_the_installed_wheel_is_what_runs() -> None:
    assert "site-packages" in Path(lvskit.__file__).parts
    for point in entry_points(group="lvskit"):
        assert "site-packages" in Path(point.load().__file__).parts


@pytest.mark.skipif("LVSKIT_EXPECT_PLUGGY" not in os.environ, reason="any pluggy will do")
def test_this_is_the_oldest_pluggy() -> None:
    assert pluggy.__version__ == os.environ["LVSKIT_EXPECT_PLUGGY"]


def test_the_command_lists_exactly_these() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lvskit", "plugins", "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    listed = json.loads(done.stdout)
    assert listed["failures"] == []
    names = {(row["kind"], row["name"]) for row in listed["plugins"]}
    expected = {("scheduler", name) for name in SCHEDULERS}
    expected |= {("forwarder", name) for name in FORWARDERS}
    assert {each for each in names if each[0] in ("scheduler", "forwarder")} == expected


# --- what is not ---


@pytest.mark.parametrize("name", [*ABSENT_SCHEDULERS, "no_such"])
def test_an_absent_scheduler_is_refused(name: str) -> None:
    plugins = lvskit.load_plugins(strict=True)
    brain = director()
    with pytest.raises(lvskit.UnknownPlugin) as caught:
        brain.add_service(key(4), lvskit.ServiceSettings(scheduler=name))
    assert (caught.value.kind, caught.value.name) == ("scheduler", name)
    installed = [f"{n} ({plugins.schedulers[n].source})" for n in SCHEDULERS]
    assert str(caught.value) == (
        f"unknown scheduler {name!r}; installed: {', '.join(installed) or 'none'}"
    )
    assert len(brain.services) == 0


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("method", [*ABSENT_FORWARDERS, "no_such"])
def test_an_absent_forwarder_is_refused(scheduler: str, method: str) -> None:
    plugins = lvskit.load_plugins(strict=True)
    brain = director()
    service = brain.add_service(key(4), lvskit.ServiceSettings(scheduler=scheduler))
    with pytest.raises(lvskit.UnknownPlugin) as caught:
        brain.add_server(key(4), server(4, 1), 23, lvskit.ServerSettings(method=method))
    assert (caught.value.kind, caught.value.name) == ("forwarder", method)
    installed = [f"{n} ({plugins.forwarders[n].source})" for n in FORWARDERS]
    assert str(caught.value).endswith(f"installed: {', '.join(installed) or 'none'}")
    assert list(service.servers) == []


# --- the core alone ---


def test_without_services_every_packet_is_the_hosts() -> None:
    brain = director()
    for version in (4, 6):
        assert brain.receive(tcp(version, 1024, SYN), 0.0) == lvskit.NOT_OURS
        assert brain.receive(udp(version, 1024, b"?"), 0.0) == lvskit.NOT_OURS
    malformed = lvskit.Drop(lvskit.Reason.MALFORMED)
    for junk in (b"", b"junk", tcp(4, 1024, SYN)[:30], bytes(64)):
        assert brain.receive(junk, 0.0) == malformed


def test_time_and_commands_without_services() -> None:
    brain = director()
    brain.expire(1e6)
    brain.zero()
    brain.clear(1e6)
    assert list(brain.connections(1e6)) == []
    with pytest.raises(lvskit.ConfigError):
        brain.remove_service(key(4), 1e6)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("version", [4, 6])
def test_a_service_without_servers_refuses(scheduler: str, version: int) -> None:
    brain = director()
    brain.add_service(key(version), lvskit.ServiceSettings(scheduler=scheduler))
    verdict = brain.receive(tcp(version, 1024, SYN), 0.0)
    assert isinstance(verdict, lvskit.Reply)
    assert verdict.reason is lvskit.Reason.NO_SERVER
    assert brain.receive(tcp(version, 1024, ACK), 0.0) == lvskit.NOT_OURS


# --- every scheduler with every forwarding method ---


def check_carried(method: str, verdict: lvskit.Verdict, packet: bytes, version: int) -> bytes:
    """Check how `packet` left, and return the address that it went to."""
    if method == "local":
        assert verdict == lvskit.DELIVER
        return b""
    assert isinstance(verdict, lvskit.Transmit)
    assert verdict.route.source == DIRECTOR[version]
    if method in ("droute", "masq"):
        return check_as_it_is(method, verdict, packet, version)
    size = 20 if version == 4 else 40
    outer, inner = verdict.packet[:size], verdict.packet[size:]
    if version == 4:
        assert outer[9] == PROTOCOL_INSIDE[4]
        assert int.from_bytes(outer[2:4], "big") == len(verdict.packet)
        assert lvskit.checksum(outer) == lvskit.checksum(inner[:20]) == 0
        assert inner[8] == outer[8] == packet[8] - 1
        assert inner[12:] == packet[12:]
        assert outer[12:16] == DIRECTOR[4]
        return outer[16:20]
    assert outer[6] == PROTOCOL_INSIDE[6]
    assert int.from_bytes(outer[4:6], "big") == len(inner)
    assert inner[7] == packet[7] - 1
    assert inner[8:] == packet[8:]
    assert outer[8:24] == DIRECTOR[6]
    return outer[24:40]


def check_as_it_is(
    method: str, verdict: lvskit.Transmit, packet: bytes, version: int
) -> bytes:  # fmt: skip
    """Do the same where the packet itself leaves, one hop and perhaps an address the less."""
    hops, sums, target = (8, slice(10, 12), slice(16, 20))
    if version == 6:
        hops, sums, target = (7, slice(0, 0), slice(24, 40))
    transport = slice(target.stop, None)
    assert verdict.packet[hops] == packet[hops] - 1
    if version == 4:
        assert lvskit.checksum(verdict.packet[:20]) == 0
    if method == "masq":
        assert verdict.via == b""
        assert verdict.packet[transport][:4] == packet[transport][:4]
        return verdict.packet[target]
    expected = bytearray(packet)
    expected[hops] -= 1
    expected[sums] = verdict.packet[sums]
    assert verdict.packet == bytes(expected)
    return verdict.via


PAIRS = list(itertools.product(SCHEDULERS, FORWARDERS))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("scheduler", "method"), PAIRS)
def test_tcp_connections_are_shared(scheduler: str, method: str, version: int) -> None:
    brain = director()
    service = brain.add_service(key(version), lvskit.ServiceSettings(scheduler=scheduler))
    for number in (1, 2, 3):
        settings = lvskit.ServerSettings(method=method, weight=6)
        brain.add_server(key(version), server(version, number), 23, settings)
    gone_to: dict[int, bytes] = {}
    for cport in range(2000, 2012):
        packet = tcp(version, cport, SYN)
        gone_to[cport] = check_carried(method, brain.receive(packet, 0.0), packet, version)
    for cport, address in gone_to.items():
        packet = tcp(version, cport, ACK)
        assert check_carried(method, brain.receive(packet, 1.0), packet, version) == address
    active = [s.activeconns for s in service.servers]
    assert sum(active) == 12
    assert active == [4, 4, 4] or scheduler not in EVEN
    assert [s.counters.inpkts for s in service.servers] == [2 * count for count in active]
    assert len(list(brain.connections(1.0))) == 12
    for cport in gone_to:
        brain.receive(tcp(version, cport, RST), 2.0)
    assert list(brain.connections(100.0)) == []
    assert [(s.activeconns, s.inactconns) for s in service.servers] == [(0, 0)] * 3


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("scheduler", "method"), PAIRS)
def test_udp_with_persistence_stays_with_one_server(
    scheduler: str, method: str, version: int
) -> None:
    brain = director()
    service_key = key(version, lvskit.UDP)
    settings = lvskit.ServiceSettings(scheduler=scheduler, persistence_s=360)
    service = brain.add_service(service_key, settings)
    for number in (1, 2):
        brain.add_server(
            service_key, server(version, number), 23, lvskit.ServerSettings(method=method)
        )
    went = set()
    for cport in range(3000, 3006):
        packet = udp(version, cport, b"question")
        went.add(check_carried(method, brain.receive(packet, 0.0), packet, version))
    assert len(went) == 1
    assert sorted(s.inactconns for s in service.servers) == [0, 6]


@pytest.mark.parametrize(("scheduler", "method"), PAIRS)
def test_a_quiesced_server_gets_nothing_new(scheduler: str, method: str) -> None:
    """At most, clients are refused: by a scheduler that does not promise to serve them all."""
    brain = director()
    service = brain.add_service(key(4), lvskit.ServiceSettings(scheduler=scheduler))
    for number, weight in ((1, 4), (2, 0)):
        settings = lvskit.ServerSettings(method=method, weight=weight)
        brain.add_server(key(4), server(4, number), 23, settings)
    total = lvskit.load_plugins().scheduler(scheduler).traits.total
    carried = 0
    for cport in range(4000, 4004):
        packet = tcp(4, cport, SYN)
        verdict = brain.receive(packet, 0.0)
        if total or not isinstance(verdict, lvskit.Reply):
            check_carried(method, verdict, packet, 4)
            carried += 1
    assert {s.address[-1]: s.activeconns for s in service.servers} == {1: carried, 2: 0}


@pytest.mark.parametrize(("scheduler", "method"), PAIRS)
def test_a_server_that_is_the_director(scheduler: str, method: str) -> None:
    """Whatever its method, the local socket serves it; as packets are, this needs that plugin."""
    brain = director(local=DIRECTOR[4])
    brain.add_service(key(4), lvskit.ServiceSettings(scheduler=scheduler))
    settings = lvskit.ServerSettings(method=method, weight=3)
    if "local" in FORWARDERS:
        brain.add_server(key(4), DIRECTOR[4], 23, settings)
        verdict = brain.receive(tcp(4, 5000, SYN), 0.0)
        assert isinstance(verdict, lvskit.Deliver)
        assert method == "masq" or verdict == lvskit.DELIVER
    else:
        with pytest.raises(lvskit.UnknownPlugin, match="unknown forwarder 'local'"):
            brain.add_server(key(4), DIRECTOR[4], 23, settings)
