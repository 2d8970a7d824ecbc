"""GUE and GRE beside IP in IP: every byte against scapy, and what each makes of the MTU."""

from __future__ import annotations

from typing import Any

import lvskit_fwd_tunnel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lvskit_fwd_tunnel import make
from lvskit_fwd_tunnel.gue import source_port
from lvskit_fwd_tunnel.options import Options
from lvskit_fwd_tunnel.outer import Tunnel
from scapy.layers import inet, inet6, l2
from scapy.packet import Packet, Raw

from lvskit import (
    SCTP,
    TCP,
    UDP,
    ConfigError,
    Director,
    Drop,
    Reason,
    Refusal,
    Reply,
    Route,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    Transmit,
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
IPIP = Options()
GRE, SUMMED_GRE = Options(type="gre"), Options(type="gre", checksum="csum")
GUE = Options(type="gue", port=6080)
SUMMED_GUE = Options(type="gue", port=6080, checksum="csum")
KINDS = {"ipip": IPIP, "gre": GRE, "gre+c": SUMMED_GRE, "gue": GUE, "gue+c": SUMMED_GUE}
OVERHEADS = {"ipip": 0, "gre": 4, "gre+c": 8, "gue": 12, "gue+c": 12}
VERSIONS = st.sampled_from([4, 6])
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


def tunnel(
    kind: str, outer: int = 4, mtu: int = 1500, *, pmtu_disc: bool = True
) -> tuple[Tunnel, StandInConnection]:
    """Return a tunnel and a connection to ask it about."""
    server = StandInServer(address(SERVER[outer]), pmtu_disc=pmtu_disc)
    made = make(server, KINDS[kind])
    made.route_changed(Route(address(HERE[outer]), mtu))
    return made, StandInConnection(packets.flow(CLIENT[4], 1024, VIP[4], 80), server)


def sent(kind: str, packet: bytes, *, times: int = 1, **more: Any) -> bytes:
    """Return what leaves when `packet` comes for the last of some times."""
    made, connection = tunnel(kind, **more)
    for _ in range(times):
        verdict = made.transmit(connection, packet)
    assert isinstance(verdict, Transmit), verdict
    assert verdict.route is made._route
    assert not verdict.via
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


def carried(kind: str, inner: bytes, version: int) -> Packet:
    """Return as scapy layers what the outer header carries; scapy fills in lengths and sums."""
    if kind == "ipip":
        return Raw(inner)
    if kind.startswith("gre"):
        proto = 0x800 if version == 4 else 0x86DD
        return l2.GRE(chksum_present="+c" in kind, proto=proto) / Raw(inner)
    port = source_port(inner)
    udp = inet.UDP(sport=port, dport=6080)
    if "+c" not in kind:
        udp.chksum = 0
    return udp / Raw(bytes([0, 4 if version == 4 else 41, 0, 0]) + inner)


PROTOCOLS = {"ipip": None, "gre": 47, "gre+c": 47, "gue": 17, "gue+c": 17}


@EACH_KIND
@given(
    inner=VERSIONS, outer=VERSIONS, ttl=st.integers(2, 255), tos=st.integers(0, 255),
    df=st.booleans(), payload=st.binary(max_size=81), times=st.integers(1, 2),
)  # fmt: skip
def test_what_leaves_is_what_scapy_would_send(
    kind: str, *, inner: int, outer: int, ttl: int, tos: int, df: bool, payload: bytes, times: int
) -> None:
    packet = packets.udp(
        CLIENT[inner], 1024, VIP[inner], 80, payload=payload, ttl=ttl, tos=tos, df=df
    )
    raw = sent(kind, packet, outer=outer, times=times)
    shown = tos & 0xFC | 2 if tos & 3 == 3 else tos
    protocol = PROTOCOLS[kind] or (4 if inner == 4 else 41)
    has_df = df and inner == 4
    head: Packet
    if outer == 4:
        number = 0 if has_df else times
        flags = "DF" if has_df else 0
        head = inet.IP(src=HERE[4], dst=SERVER[4], tos=shown, ttl=ttl - 1, proto=protocol)
        head.flags, head.id = flags, number
    else:
        head = inet6.IPv6(src=HERE[6], dst=SERVER[6], tc=shown, hlim=ttl - 1, nh=protocol)
    assert raw == bytes(head / carried(kind, decremented(packet), inner))


@given(st.integers(0, 0xFFFF))
def test_a_checksum_of_zero_is_sent_as_its_twin(word: int) -> None:
    """RFC 768: 0 would say that there is none. Somewhere among these payloads the sum is 0."""

    def total(filler: int) -> int:
        payload = bytes(2) + filler.to_bytes(2, "big")
        packet = packets.udp(CLIENT[4], 1024, VIP[4], 80, payload=payload)
        # The inner checksum would undo what the payload adds.
        packet = packet[:26] + bytes(2) + packet[28:]
        return int.from_bytes(sent("gue+c", packet)[26:28], "big")

    found = total(word)
    assert found
    zero = (word + found) % 0xFFFF
    assert total(zero) == 0xFFFF


@EACH_KIND
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("inner", [4, 6])
def test_what_does_not_fit_is_answered_with_the_size_that_does(
    kind: str, inner: int, outer: int
) -> None:
    fits = 1500 - (20 if outer == 4 else 40) - OVERHEADS[kind]
    made, connection = tunnel(kind, outer)

    def of(size: int) -> bytes:
        head = 40 if inner == 4 else 60
        return packets.tcp(CLIENT[inner], 1, VIP[inner], 80, "A", payload=bytes(size - head))

    verdict = made.transmit(connection, of(fits))
    assert isinstance(verdict, Transmit)
    assert len(verdict.packet) == 1500
    reply = made.transmit(connection, of(fits + 1))
    assert reply == refuse(decremented(of(fits + 1)), Refusal.TOO_BIG, mtu=fits)


@EACH_KIND
@pytest.mark.parametrize("version", [4, 6])
def test_a_packet_at_the_end_of_its_life_is_answered(kind: str, version: int) -> None:
    made, connection = tunnel(kind)
    packet = packets.udp(CLIENT[version], 1, VIP[version], 80, ttl=1)
    assert made.transmit(connection, packet) == refuse(packet, Refusal.TIME_EXCEEDED)


@EACH_KIND
@given(size=st.integers(0, 4000), df=st.booleans())
def test_without_path_mtu_discovery_everything_goes_and_is_split(
    kind: str, *, size: int, df: bool
) -> None:
    """The outer DF is never set, and identifications count; scapy puts the pieces together."""
    packet = packets.udp(CLIENT[4], 1024, VIP[4], 80, payload=bytes(size), df=df)
    raw = sent(kind, packet, pmtu_disc=False, times=3)
    assert raw[4:8] == bytes([0, 3, 0, 0])
    whole = inet.defragment([inet.IP(part) for part in fragment(raw, 1500)])[0]
    protocol = PROTOCOLS[kind] or 4
    assert bytes(whole)[20:] == bytes(
        inet.IP(src=HERE[4], dst=SERVER[4], proto=protocol)
        / carried(kind, decremented(packet), 4)
    )[20:]  # fmt: skip


def test_without_path_mtu_discovery_ipv6_is_refused_all_the_same() -> None:
    made, connection = tunnel("ipip", pmtu_disc=False)
    packet = packets.udp(CLIENT[6], 1024, VIP[6], 80, payload=bytes(1433))
    assert isinstance(made.transmit(connection, packet), Reply)


def test_a_change_of_path_mtu_discovery_counts_from_the_next_packet_on() -> None:
    made, connection = tunnel("ipip")
    large = packets.udp(CLIENT[4], 1024, VIP[4], 80, payload=bytes(1473))
    small = packets.udp(CLIENT[4], 1024, VIP[4], 80)
    seen = []
    for connection.server.pmtu_disc in (True, False, True):
        made.route_changed(Route(address(HERE[4]), 1500))
        verdict = made.transmit(connection, small)
        assert isinstance(verdict, Transmit)
        df = bool(verdict.packet[6] & 0x40)
        seen.append((df, type(made.transmit(connection, large))))
    assert seen == [(True, Reply), (False, Transmit), (True, Reply)]


@EACH_KIND
@pytest.mark.parametrize("df", [True, False])
def test_an_icmp_error_is_split_in_spite_of_its_df(kind: str, df: bool) -> None:
    """ip_vs_xmit.c, ensure_mtu_is_adequate: nobody may be told that it is too large."""
    quote = packets.udp(VIP[4], 80, CLIENT[4], 1024, payload=bytes(1500))
    error = packets.icmp_error("10.9.9.9", VIP[4], 3, 1, quote)
    four = inet.IP(error)
    four.flags = "DF" if df else 0
    del four.chksum
    error = bytes(four)
    raw = sent(kind, error)
    assert raw[4:8] == (bytes(4) if df else bytes([0, 1, 0, 0]))
    assert raw[20 + OVERHEADS[kind] :] == decremented(error)
    checked = inet.IP(raw)
    del checked.chksum
    assert bytes(checked) == raw


@EACH_KIND
@pytest.mark.parametrize(("outer", "floor"), [(4, 68), (6, 1280)])
def test_below_a_certain_mtu_nothing_is_sent(kind: str, outer: int, floor: int) -> None:
    """The kernel's floors: what IP must be able to carry."""
    least = floor + (20 if outer == 4 else 40) + OVERHEADS[kind]
    for version in (4, 6):
        packet = packets.udp(CLIENT[version], 1, VIP[version], 80)
        assert len(sent(kind, packet, outer=outer, mtu=least)) > len(packet)
        for pmtu_disc in (True, False):
            made, connection = tunnel(kind, outer, least - 1, pmtu_disc=pmtu_disc)
            assert made.transmit(connection, packet) == Drop(Reason.TOO_BIG)
            dying = packets.udp(CLIENT[version], 1, VIP[version], 80, ttl=1)
            assert made.transmit(connection, dying) == refuse(dying, Refusal.TIME_EXCEEDED)


@EACH_KIND
@pytest.mark.parametrize("outer", [4, 6])
def test_the_largest_datagrams(kind: str, outer: int) -> None:
    largest = 65535 - OVERHEADS[kind] - (20 if outer == 4 else 0)
    packet = packets.udp(CLIENT[4], 1, VIP[4], 80, df=False, payload=bytes(largest - 28))
    raw = sent(kind, packet, outer=outer)
    assert raw[2:4] == b"\xff\xff" if outer == 4 else raw[4:6] == b"\xff\xff"
    if largest < 65535:
        made, connection = tunnel(kind, outer)
        longer = packets.udp(CLIENT[4], 1, VIP[4], 80, df=False, payload=bytes(largest - 27))
        assert made.transmit(connection, longer) == Drop(Reason.TOO_BIG)


# --- the source port of GUE ---


@given(VERSIONS, st.sampled_from([TCP, UDP, SCTP]), st.binary(min_size=4, max_size=4))
def test_the_source_port_is_the_flows(version: int, protocol: int, flow: bytes) -> None:
    """Whatever else differs between its packets, IPv4 options included."""
    more: Any = {"options": bytes(8)} if version == 4 else {}
    one = packets.ip(CLIENT[version], VIP[version], protocol, flow + bytes(20))
    other = packets.ip(CLIENT[version], VIP[version], protocol, flow + b"x" * 9, ttl=9, **more)
    assert source_port(one) == source_port(other)
    assert 32768 <= source_port(one) < 60999


def test_source_ports_spread() -> None:
    for version in (4, 6):
        ports = {source_port(packets.tcp(CLIENT[version], n, VIP[version], 80)) for n in range(999)}
        assert len(ports) > 900
    # ICMP has no ports, so whatever it says goes one way.
    errors = {source_port(packets.icmp_error(CLIENT[4], VIP[4], 3, n, b"?")) for n in range(9)}
    assert len(errors) == 1


# --- options ---


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({"type": "vxlan"}, "option 'type': invalid enum value 'vxlan'"),
        ({"type": "gue"}, "port 0 of a gue tunnel; allowed: 1 to 65535"),
        ({"type": "gue", "port": 65536}, "port 65536 of a gue tunnel; allowed: 1 to 65535"),
        ({"port": 6080}, "port 6080 of a tunnel of type ipip; only gue has one"),
        ({"type": "gre", "port": 1}, "port 1 of a tunnel of type gre; only gue has one"),
        ({"checksum": "csum"}, "checksum 'csum' of a tunnel of type ipip; allowed: nocsum"),
        (
            {"type": "gre", "checksum": "remcsum"},
            "checksum 'remcsum' of a tunnel of type gre; allowed: nocsum, csum",
        ),
        ({"kind": "gre"}, "unknown option 'kind'; options of tunnel: type, port, checksum"),
    ],
)
def test_impossible_options(given_options: dict[str, Any], message: str) -> None:
    director, key = a_director()
    with pytest.raises(ConfigError) as caught:
        director.add_server(key, address(SERVER[4]), None, ServerSettings(options=given_options))
    assert message in str(caught.value)
    assert list(director.services.get(key).servers) == []


def a_director() -> tuple[Director, ServiceKey]:
    """Return a director with one service."""
    plugins = load_plugins()
    plugins.add(FirstServer(), Source("first", "lvskit-test", "1"))
    director = Director(plugins, lambda target: Route(address(HERE[4]), 1500))
    key = ServiceKey.of(UDP, address(VIP[4]), 80)
    director.add_service(key, ServiceSettings(scheduler="first"))
    return director, key


@pytest.mark.parametrize(
    "options",
    [
        {"type": "ipip"},
        {"type": "gre"},
        {"type": "gre", "checksum": "csum"},
        {"type": "gue", "port": 6080, "checksum": "remcsum"},
    ],
)
def test_through_a_director(options: dict[str, Any]) -> None:
    """A remote checksum is the ordinary one for packets that are passed on."""
    director, key = a_director()
    director.add_server(key, address(SERVER[4]), None, ServerSettings(options=options))
    packet = packets.udp(CLIENT[4], 1024, VIP[4], 80, payload=b"?")
    verdict = director.receive(packet, 0.0)
    assert isinstance(verdict, Transmit)
    summed = "+c" if options.get("checksum", "nocsum") != "nocsum" else ""
    assert verdict.packet == sent(options["type"] + summed, packet)


def test_an_edit_changes_the_kind_for_new_connections() -> None:
    director, key = a_director()
    director.add_server(key, address(SERVER[4]), None, ServerSettings())
    packet = packets.udp(CLIENT[4], 1024, VIP[4], 80)
    director.receive(packet, 0.0)
    settings = ServerSettings(options={"type": "gre"})
    director.edit_server(key, address(SERVER[4]), None, settings)
    verdict = director.receive(packets.udp(CLIENT[4], 1025, VIP[4], 80), 0.0)
    assert isinstance(verdict, Transmit)
    assert verdict.packet[9] == 47


def test_the_record_names_its_options() -> None:
    (spec,) = lvskit_fwd_tunnel.lvskit_register_forwarders()
    assert spec.option_names == ("type", "port", "checksum")
