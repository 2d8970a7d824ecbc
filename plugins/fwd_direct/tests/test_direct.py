"""What leaves a director for a direct server, against scapy; and through a director."""

from __future__ import annotations

from typing import Any

import lvskit_fwd_direct
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lvskit_fwd_direct import Direct
from scapy.layers import inet, inet6

from lvskit import (
    DELIVER,
    TCP,
    UDP,
    Director,
    Refusal,
    Route,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    Transmit,
    Verdict,
    load_plugins,
    refuse,
)
from lvskit.datapath.fragments import fragment
from lvskit.plugins import Source
from lvskit.testing import packets
from lvskit.testing.packets import address
from lvskit.testing.standins import FirstServer, StandInConnection, StandInServer

HERE = {4: "192.168.1.175", 6: "2001:db8::175"}
SERVER = {4: "192.168.1.11", 6: "2001:db8::11"}
CLIENT = {4: "10.0.0.1", 6: "2001:db8:1::1"}
VIP = {4: "192.168.1.176", 6: "2001:db8::176"}
EACH_VERSION = pytest.mark.parametrize("version", [4, 6])


def transmit(packet: bytes, *, mtu: int = 1500, pmtu_disc: bool = True) -> Verdict:
    """Return what is to be done with `packet`."""
    version = packet[0] >> 4
    server = StandInServer(address(SERVER[version]), pmtu_disc=pmtu_disc)
    direct = Direct(server)
    route = Route(address(HERE[version]), mtu)
    direct.route_changed(route)
    flow = packets.flow(CLIENT[version], 1024, VIP[version], 80)
    verdict = direct.transmit(StandInConnection(flow, server), packet)
    if isinstance(verdict, Transmit):
        assert verdict.route is route
        assert verdict.via == server.address
    return verdict


def sent(packet: bytes, **more: Any) -> bytes:
    """Return the packet that is to be sent."""
    verdict = transmit(packet, **more)
    assert isinstance(verdict, Transmit), verdict
    return verdict.packet


def decremented(packet: bytes) -> bytes:
    """Return the packet with one hop less, its checksum computed by scapy from nothing."""
    if packet[0] >> 4 == 6:
        six = inet6.IPv6(packet)
        six.hlim -= 1
        return bytes(six)
    four = inet.IP(packet)
    four.ttl -= 1
    del four.chksum
    return bytes(four)


@given(
    version=st.sampled_from([4, 6]), build=st.sampled_from([packets.tcp, packets.udp]),
    ttl=st.integers(2, 255), tos=st.integers(0, 255), df=st.booleans(),
    payload=st.binary(max_size=99),
)  # fmt: skip
def test_only_the_ttl_changes(version: int, build: Any, **shape: Any) -> None:
    packet = build(CLIENT[version], 1024, VIP[version], 80, **shape)
    assert sent(packet) == decremented(packet)


@given(st.integers(0, 65535), st.binary(min_size=0, max_size=40).map(lambda b: b[: len(b) & ~3]))
def test_options_and_every_checksum(identification: int, options: bytes) -> None:
    more = {"identification": identification, "options": options}
    packet = packets.ip(CLIENT[4], VIP[4], UDP, bytes(12), **more)
    assert sent(packet) == decremented(packet)


def test_the_checksum_where_it_wraps() -> None:
    """Among all the headers are those where adding one hop's worth carries, and gives 0."""
    seen = set()
    for identification in range(0, 65536, 31):
        packet = packets.ip(CLIENT[4], VIP[4], UDP, b"", identification=identification)
        seen.add(int.from_bytes(packet[10:12], "big") >= 0xFEFF)
        assert sent(packet) == decremented(packet)
    assert seen == {True, False}


@EACH_VERSION
@pytest.mark.parametrize("ttl", [0, 1])
def test_a_packet_at_the_end_of_its_life_is_answered(version: int, ttl: int) -> None:
    """Before its size is looked at; the quote is the packet as it came."""
    packet = packets.udp(CLIENT[version], 1, VIP[version], 80, ttl=ttl, payload=bytes(3000))
    assert transmit(packet) == refuse(packet, Refusal.TIME_EXCEEDED)


@EACH_VERSION
@pytest.mark.parametrize("mtu", [1280, 1500, 9000])
@pytest.mark.parametrize("pmtu_disc", [True, False])
def test_what_does_not_fit_is_answered(version: int, mtu: int, *, pmtu_disc: bool) -> None:
    """With the link's MTU. `pmtu_disc` is about tunnels: ip_vs_xmit.c, ensure_mtu_is_adequate."""

    def of(size: int) -> bytes:
        head = 28 if version == 4 else 48
        return packets.udp(CLIENT[version], 1, VIP[version], 80, payload=bytes(size - head))

    assert sent(of(mtu), mtu=mtu, pmtu_disc=pmtu_disc) == decremented(of(mtu))
    reply = transmit(of(mtu + 1), mtu=mtu, pmtu_disc=pmtu_disc)
    # As the kernel: the quote has lost the hop already.
    assert reply == refuse(decremented(of(mtu + 1)), Refusal.TOO_BIG, mtu=mtu)


def test_what_may_be_split_goes() -> None:
    packet = packets.udp(CLIENT[4], 1, VIP[4], 80, payload=bytes(3000), df=False)
    assert sent(packet) == decremented(packet)


@given(st.integers(1479, 3000), st.binary(max_size=40).map(lambda b: b[: len(b) & ~3]))
def test_an_icmp_error_is_split_in_spite_of_its_df(size: int, options: bytes) -> None:
    """Nobody may be told that it is too large; its pieces, put together by scapy, are it."""
    error = packets.ip("10.9.9.9", VIP[4], 1, bytes([3, 1]) + bytes(size), options=options)
    whole = inet.IP(error)
    whole.flags = 0
    del whole.chksum
    raw = sent(error)
    assert raw == decremented(bytes(whole))
    if not options:
        parts = [inet.IP(part) for part in fragment(raw, 1500)]
        assert bytes(inet.defragment(parts)[0]) == raw
    small = packets.ip("10.9.9.9", VIP[4], 1, bytes([3, 1]) + bytes(99))
    assert sent(small) == decremented(small)


def test_a_changed_route_counts_from_the_next_packet_on() -> None:
    server = StandInServer(address(SERVER[4]))
    direct = Direct(server)
    connection = StandInConnection(packets.flow(CLIENT[4], 1, VIP[4], 80), server)
    packet = packets.tcp(CLIENT[4], 1, VIP[4], 80, payload=bytes(1400))
    for mtu in (1500, 1400, 1500):
        route = Route(address(HERE[4]), mtu)
        direct.route_changed(route)
        verdict = direct.transmit(connection, packet)
        assert isinstance(verdict, Transmit) == (mtu == 1500)
        assert not isinstance(verdict, Transmit) or verdict.route is route


# --- through a director ---


def a_director(version: int, *, local: bool = False) -> tuple[Director, ServiceKey]:
    """Return a director with a service and a server of it."""
    plugins = load_plugins()
    plugins.add(FirstServer(), Source("first", "lvskit-test", "1"))
    route = Route(address(HERE[version]), 1500, local=local)
    director = Director(plugins, lambda target: route)
    key = ServiceKey.of(TCP, address(VIP[version]), 80)
    director.add_service(key, ServiceSettings(scheduler="first"))
    director.add_server(key, address(SERVER[version]), 8080, ServerSettings(method="droute"))
    return director, key


@EACH_VERSION
def test_through_a_director(version: int) -> None:
    """The server has its service's port, whatever was asked for."""
    director, key = a_director(version)
    (server,) = director.services.get(key).servers
    assert server.port == 80
    packet = packets.tcp(CLIENT[version], 1024, VIP[version], 80)
    verdict = director.receive(packet, 0.0)
    assert isinstance(verdict, Transmit)
    assert verdict.packet == decremented(packet)
    assert verdict.via == address(SERVER[version])
    assert server.counters.inpkts == 1


@EACH_VERSION
def test_a_server_that_is_the_director(version: int) -> None:
    if "local" not in load_plugins().forwarders:
        pytest.skip("the method `local` is not installed")
    director, _ = a_director(version, local=True)
    packet = packets.tcp(CLIENT[version], 1024, VIP[version], 80)
    assert director.receive(packet, 0.0) == DELIVER


def test_records() -> None:
    (spec,) = lvskit_fwd_direct.lvskit_register_forwarders()
    assert (spec.name, spec.keeps_port, spec.same_version) == ("droute", True, True)
    assert spec.options is None
    assert load_plugins().forwarder("droute").factory is spec.factory
