"""Fragments against scapy, which puts them together again."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import inet, inet6

from lvskit.datapath.fragments import fragment, split
from lvskit.testing import packets
from lvskit.types import Reassembled


def datagram(length: int, identification: int = 7) -> bytes:
    payload = bytes(i * 7 & 255 for i in range(length))
    return packets.ip(
        "10.0.0.1", "10.0.0.2", 4, payload, df=False, identification=identification, tos=0xB8, ttl=9
    )


@given(st.integers(0, 4000), st.integers(28, 1600), st.integers(0, 65535))
def test_fragments_make_the_datagram_again(length: int, mtu: int, identification: int) -> None:
    whole = datagram(length, identification)
    parts = fragment(whole, mtu)
    if len(whole) <= mtu:
        assert parts == [whole]
        return
    found = [inet.IP(part) for part in parts]
    end = 0
    for part, raw in zip(found, parts, strict=True):
        assert len(raw) == part.len <= mtu
        assert (part.src, part.dst, part.proto) == ("10.0.0.1", "10.0.0.2", 4)
        assert (part.id, part.tos, part.ttl, part.ihl) == (identification, 0xB8, 9, 5)
        assert part.frag * 8 == end
        assert int(part.flags) == (0 if part is found[-1] else 1)
        stated = part.chksum
        del part.chksum
        assert inet.IP(bytes(part)).chksum == stated
        end += len(raw) - 20
    # As few as there can be: each but the last is as long as its offset's unit of 8 bytes allows.
    assert all(len(raw) + 8 > mtu for raw in parts[:-1])
    (again,) = inet.defragment([inet.IP(part) for part in parts])
    del again.len, again.chksum, again.flags
    assert bytes(again) == whole


@pytest.mark.parametrize("length", [1460, 1480, 1481, 65515])
def test_sizes_at_the_edge(length: int) -> None:
    parts = fragment(datagram(length), 1500)
    assert len(parts) == -(-length // 1480)
    assert b"".join(part[20:] for part in parts) == datagram(length)[20:]


def test_options_that_belong_to_the_first_fragment_stay_there() -> None:
    # Record route is not copied, the router alert is (RFC 791, section 3.1; RFC 2113).
    options = bytes.fromhex("0707040000000001 94040000".replace(" ", ""))
    whole = bytearray(datagram(100))
    whole[0], whole[2:4] = 0x48, (132).to_bytes(2, "big")
    parts = fragment(bytes(whole[:20] + options + whole[20:]), 80)
    assert [len(part) for part in parts] == [80, 80, 36]
    assert [part[20:32].hex() for part in parts] == [
        "070704000000000194040000",
        "010101010101010194040000",
        "010101010101010194040000",
    ]
    for part in parts:
        found = inet.IP(part)
        stated = found.chksum
        del found.chksum
        assert inet.IP(bytes(found)).chksum == stated


@pytest.mark.parametrize("options", ["0000000007ffffff", "44000000", "070304ff", "0101010144"])
def test_broken_options_do_no_harm(options: str) -> None:
    raw = bytes.fromhex(options).ljust(8, b"\x44")
    whole = bytearray(datagram(100))
    whole[0] = 0x47
    parts = fragment(bytes(whole[:20] + raw + whole[20:]), 60)
    assert b"".join(part[28:] for part in parts) == datagram(100)[20:]


V6 = ("2001:db8::1", "2001:db8::2")


@pytest.mark.parametrize("df", [False, True])
def test_a_tunnel_of_ipv4_is_split_in_ipv6_too(df: bool) -> None:
    """Not so what is IPv6 inside, and what the host sends itself: there the sender must learn."""
    inner = packets.ip("10.0.0.1", "10.0.0.2", 17, bytes(1480), df=df)
    outer = packets.ip(*V6, 4, inner)
    parts = split(outer, inner, 1400, count(1 << 32))
    assert [len(part) for part in parts] == [1400, 196]
    assert bytes(inet6.defragment6([inet6.IPv6(part) for part in parts])) == outer
    assert split(outer, packets.udp(V6[0], 1, V6[1], 2), 1400, count()) == []
    assert split(outer, b"", 1400, count()) == []


def test_what_fits_is_sent_as_it_is() -> None:
    numbers = count()
    for whole in (datagram(1000), packets.ip(*V6, 17, bytes(1000))):
        for came in (b"", whole, Reassembled(whole, len(whole), (1000,))):
            assert split(whole, came, len(whole), numbers) == [whole]
    assert next(numbers) == 0
