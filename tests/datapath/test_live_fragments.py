"""How fragments were is remembered, and found again for what the host makes of them."""

from __future__ import annotations

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from lvskit.datapath.live.fragments import KEPT_S, MOST, FragmentSizes
from lvskit.datapath.live.rules import SNAPSHOT
from lvskit.datapath.reassembly import Reassembler
from lvskit.testing import packets
from lvskit.types import Reassembled

CLIENT, VIP = "10.0.0.1", "10.0.0.2"
CLIENT6, VIP6 = "2001:db8:1::1", "2001:db8::176"


def v4(size: int, identification: int = 7) -> bytes:
    """Return an IPv4 datagram of `size` bytes."""
    return packets.ip(CLIENT, VIP, 17, bytes(size - 20), df=False, identification=identification)


def largest(sizes: FragmentSizes, packet: bytes) -> int:
    """Return the size of the largest fragment that is known of `packet`; 0 = it had none."""
    found = sizes.recall(packet)
    assert found == packet
    return found.largest if isinstance(found, Reassembled) else 0


def test_the_largest_fragment_is_remembered_until_its_datagram_comes():
    sizes = FragmentSizes()
    assert not sizes
    for size in (100, 596, 40):
        sizes.note(v4(size)[:48], 1.0)
    sizes.note(v4(1500, 8)[:48], 1.0)
    assert largest(sizes, v4(700, 9)) == 0
    assert largest(sizes, v4(700)) == 596
    assert largest(sizes, v4(700)) == 0
    assert largest(sizes, v4(1600, 8)) == 1500
    assert not sizes


def test_fragments_that_never_become_whole_are_forgotten():
    sizes = FragmentSizes()
    sizes.note(v4(100, 1), 0.0)
    sizes.note(v4(100, 2), 1.0)
    sizes.note(v4(100, 3), KEPT_S)
    assert [largest(sizes, v4(200, n)) for n in (1, 2, 3)] == [0, 100, 100]
    for number in range(20_000):
        sizes.note(v4(100, number), 50.0)
    assert sum(largest(sizes, v4(200, n)) > 0 for n in range(20_000)) == MOST
    assert not sizes


def pieces6(cuts: list[int], number: int = 1, before: bytes = b"") -> list[bytes]:
    """Return the fragments of one IPv6 datagram, split there: its payload is UDP's."""
    ends = [*(8 * cut for cut in cuts), 8 * cuts[-1] + 5 + number % 7]
    payload = packets.udp(CLIENT6, 1, VIP6, 2, payload=bytes((number & 255,)) * (ends[-1] - 8))[40:]
    parts = []
    for start, end in zip([0, *ends], ends, strict=False):
        header = bytes((17, 0)) + (start | (end != ends[-1])).to_bytes(2, "big")
        body = header + number.to_bytes(4, "big") + payload[start:end]
        following = 44 if not before else before[0]
        behind = bytes((44,)) + before[1:] if before else b""
        parts.append(packets.ip(CLIENT6, VIP6, following, behind + body))
    return parts


datagrams = st.lists(
    st.tuples(
        st.lists(st.integers(1, 60), min_size=1, max_size=6, unique=True).map(sorted),
        st.sampled_from([b"", bytes((60, 0)) + bytes(6), bytes((0, 1, 5, 2)) + bytes(12)]),
    ),
    min_size=1,
    max_size=4,
)


@given(datagrams, st.randoms(use_true_random=False))
def test_the_pieces_of_ipv6_are_those_that_a_host_puts_together(shapes, random):
    """Whatever the order, and where some come twice."""
    fragments = [
        part
        for number, (cuts, before) in enumerate(shapes)
        for part in pieces6(cuts, number, before)
    ]
    fragments += random.sample(fragments, 1)
    random.shuffle(fragments)
    sizes, host = FragmentSizes(), Reassembler()
    wholes = []
    for part in fragments:
        sizes.note(part[:SNAPSHOT], 1.0)
        wholes += [whole for whole in [host.add(part, 1.0)] if whole is not None]
    assert len(wholes) == len(shapes)
    for whole in wholes:
        found = sizes.recall(bytes(whole))
        assert isinstance(found, Reassembled)
        assert (found, found.largest, found.pieces) == (whole, whole.largest, whole.pieces)
        assert largest(sizes, bytes(whole)) == 0
    assert not sizes


def test_equal_datagrams_of_ipv6_are_each_remembered():
    sizes, parts = FragmentSizes(), pieces6([4, 20])
    for identification in (1, 2):
        for part in parts:
            sizes.note(part[:44] + identification.to_bytes(4, "big") + part[48:], 1.0)
    (whole,) = filter(None, map(partial(Reassembler().add, now=1.0), parts))
    assert [largest(sizes, bytes(whole)) for _ in range(3)] == [whole.largest, whole.largest, 0]


def test_a_datagram_that_came_whole_is_no_fragment():
    sizes = FragmentSizes()
    (whole, _) = pieces6([4])
    sizes.note(whole[:43] + b"\0" + whole[44:], 1.0)  # RFC 6946
    assert not sizes
    for part in pieces6([4]):
        sizes.note(part, 1.0)
    assert sizes
    other = packets.udp(CLIENT6, 1, VIP6, 3, payload=bytes(30))
    assert sizes.recall(other) is other


@given(st.binary(max_size=80), st.integers(40, 128))
def test_no_fragment_is_too_broken_to_take_note_of(body, size):
    sizes = FragmentSizes()
    packet = (bytes((0x60, 0, 0, 0)) + body[:2].ljust(2, b"\0") + b"," + bytes(33) + body)[:size]
    sizes.note(packet.ljust(40, b"\0"), 1.0)
    sizes.recall(packet.ljust(40, b"\0"))


def test_a_datagram_in_thousands_of_pieces_fills_no_memory():
    sizes = FragmentSizes()
    parts = pieces6([4, 20])
    for part in parts:
        sizes.note(part, 1.0)
    for number in range(2 * MOST):
        word = (8 * (number % 8000) | 1).to_bytes(2, "big")
        identification = (number // 8000).to_bytes(4, "big")
        sizes.note(parts[0][:42] + word + identification + parts[0][48:], 1.0)
        assert sizes._pieces + len(sizes._datagrams) <= MOST
    assert not sizes
