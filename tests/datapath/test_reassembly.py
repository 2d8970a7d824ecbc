"""Reassembly against scapy's fragments, and against Linux's rules about what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import inet, inet6
from scapy.packet import Packet

from lvskit.core.packet import parse
from lvskit.datapath.reassembly import OVERHEAD, Reassembler, bare
from lvskit.testing import packets

CLIENT, VIP = "10.0.0.1", "192.168.1.176"
CLIENT6, VIP6 = "2001:db8:1::1", "2001:db8::176"
OPTIONS = [inet.IPOption_NOP(), inet.IPOption_Router_Alert()]


def piece(
    data: bytes, offset: int, more: bool, *, identification: int = 1, df: bool = False, **other: Any
) -> bytes:
    """Return an IPv4 fragment; the offset is in bytes."""
    fields = {"src": CLIENT, "dst": VIP, "protocol": 17} | other
    return packets.ip(
        fields["src"], fields["dst"], fields["protocol"], data,
        df=df, more=more, offset=offset // 8, identification=identification,
        options=fields.get("options", b""),
    )  # fmt: skip


def piece6(
    data: bytes,
    offset: int,
    more: bool,
    *,
    identification: int = 1,
    source: str = CLIENT6,
    target: str = VIP6,
    before: bytes = b"",
    protocol: int = 17,
) -> bytes:
    """Return an IPv6 fragment; `before`: one extension header in front of the fragment header."""
    header = bytes((protocol, 0)) + (offset | more).to_bytes(2, "big")
    header += identification.to_bytes(4, "big")
    if before:
        return packets.ip(source, target, before[0], bytes((44,)) + before[1:] + header + data)
    return packets.ip(source, target, 44, header + data)


def feed(made: Reassembler, fragments: list[bytes], now: float = 0.0) -> list[bytes]:
    """Add fragments; return the datagrams that became whole."""
    for fragment in fragments:
        parsed = parse(fragment)
        assert parsed is not None
        assert parsed.fragment
    found = [made.add(fragment, now) for fragment in fragments]
    return [whole for whole in found if whole is not None]


# --- what scapy takes apart ---


@given(
    payload=st.integers(9, 3000).map(lambda size: bytes(i * 7 & 255 for i in range(size))),
    mtu=st.integers(68, 1000),
    options=st.lists(st.sampled_from(OPTIONS), max_size=5),
    order=st.randoms(use_true_random=False),
    again=st.lists(st.integers(0, 40), max_size=4),
)
def test_what_scapy_fragments_is_put_together(
    payload: bytes, mtu: int, options: list[Packet], order: Any, again: list[int]
) -> None:
    """In any order, some of it twice."""
    datagram = inet.IP(src=CLIENT, dst=VIP, id=7, tos=0xB8, ttl=9, options=options)
    datagram = inet.IP(bytes(datagram / inet.UDP(sport=1, dport=2) / payload))
    size = (mtu - datagram.ihl * 4) // 8 * 8 or 8
    parts = [bytes(part) for part in inet.fragment(datagram, size)]
    if len(parts) == 1:
        return
    (same,) = inet.defragment([inet.IP(part) for part in parts])
    assert bytes(same) == bytes(datagram)
    shuffled = list(parts)
    order.shuffle(shuffled)
    *early, last = shuffled
    early += [early[number % len(early)] for number in again]
    order.shuffle(early)
    made = Reassembler()
    assert feed(made, early) == []
    whole = made.add(last, 0.0)
    assert whole is not None
    assert whole == bytes(datagram)
    assert whole.largest == max(map(len, parts))
    assert made.expired(1e9) == []


@given(
    payload=st.integers(9, 3000).map(bytes),
    mtu=st.integers(120, 1000),
    before=st.lists(st.sampled_from(["hop-by-hop", "routing", "destination"]), max_size=3),
    behind=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_what_scapy_fragments_of_ipv6_is_put_together(
    payload: bytes, mtu: int, before: list[str], behind: bool, order: Any
) -> None:
    """With extension headers before the fragment header, and one behind it."""
    headers = {
        "hop-by-hop": inet6.IPv6ExtHdrHopByHop(options=[inet6.PadN(optdata=bytes(4))]),
        "routing": inet6.IPv6ExtHdrRouting(addresses=["2001:db8:9::1"]),
        "destination": inet6.IPv6ExtHdrDestOpt(options=[inet6.PadN(optdata=bytes(12))]),
    }
    base: Packet = inet6.IPv6(src=CLIENT6, dst=VIP6, tc=0xB8, fl=5, hlim=9)
    for name in sorted(set(before), key=list(headers).index):
        base /= headers[name].copy()
    end: Packet = inet6.UDP(sport=1, dport=2) if hasattr(inet6, "UDP") else inet.UDP()
    end = end / payload
    if behind:
        end = inet6.IPv6ExtHdrDestOpt(options=[inet6.PadN(optdata=bytes(4))]) / end
    whole = bytes(base / end)
    marked = inet6.IPv6(bytes(base / inet6.IPv6ExtHdrFragment(id=9) / end))
    parts = [bytes(part) for part in inet6.fragment6(marked, mtu)]
    if len(parts) == 1:
        return
    assert bytes(inet6.defragment6([inet6.IPv6(part) for part in parts])) == whole
    order.shuffle(parts)
    made = Reassembler()
    assert feed(made, parts[:-1]) == []
    found = made.add(parts[-1], 0.0)
    assert found is not None
    assert found == whole
    assert found.largest == max(map(len, parts))


# --- what does not fit ---


@dataclass
class Slow:
    """One datagram by Linux's rules: everything recomputed from what came, in its order."""

    kept: list[tuple[int, int, bytes]] = field(default_factory=list)
    end: int = 0
    last: bool = False

    def runs(self) -> list[list[int]]:
        """What is there in pieces: the one behind all others grows, if its next comes next."""
        runs: list[list[int]] = []
        for start, end, _ in self.kept:
            hindmost = max(runs, key=lambda run: run[1], default=[-1, -1])
            if hindmost[1] == start:
                hindmost[1] = end
            else:
                runs.append([start, end])
        return runs

    def add(self, start: int, data: bytes, more: bool) -> bytes | None:
        end = start + len(data)
        if (self.last and end > self.end) or (not more and end < self.end):
            return self._give_up()
        if not more and self.last and end != self.end:
            return self._give_up()
        self.end, self.last = max(self.end, end), self.last or not more
        runs = self.runs()
        if any(there <= start and end <= stop for there, stop in runs):
            return None  # nothing new
        if any(start < stop and there < end for there, stop in runs):
            return self._give_up()
        self.kept.append((start, end, data))
        if self.last and sum(stop - there for there, stop, _ in self.kept) == self.end:
            whole = b"".join(data for *_, data in sorted(self.kept))
            self._give_up()
            return whole
        return None

    def _give_up(self) -> None:
        self.kept, self.end, self.last = [], 0, False


@st.composite
def arrivals(draw: st.DrawFn) -> list[tuple[int, int, bool]]:
    """Return (start, end, more) in units of 8 bytes: a datagram's pieces, and some that clash."""
    units = draw(st.integers(2, 8))
    cuts = sorted(draw(st.sets(st.integers(1, units - 1), min_size=1, max_size=4)))
    edges = [0, *cuts, units]
    pieces = [(a, b, b < units) for a, b in pairwise(edges)]
    others = draw(
        st.lists(
            st.tuples(st.integers(0, 9), st.integers(0, 4), st.sampled_from([True, True, False])),
            max_size=3,
        )
    )
    pieces += [(a, a + size, more) for a, size, more in others]
    return draw(st.permutations(pieces + draw(st.lists(st.sampled_from(pieces), max_size=2))))


@given(arrivals(), st.sampled_from([4, 6]))
def test_clashing_fragments_by_linuxs_rules(
    coming: list[tuple[int, int, bool]], version: int
) -> None:
    """Each brings other bytes, so that whose were kept can be seen."""
    made, slow = Reassembler(), Slow()
    for number, (start, end, more) in enumerate(coming):
        data = bytes((number,)) * ((end - start) * 8)
        make, head = (piece, 20) if version == 4 else (piece6, 40)
        if not start and not more:
            continue  # it is no fragment
        wanted = slow.add(start * 8, data, more) if data else slow._give_up()
        found = made.add(make(data, start * 8, more), 0.0)
        assert (found[head:] if found else None) == wanted


@pytest.mark.parametrize(
    ("coming", "kept"),
    [
        # As asked of Linux 6.1.192: [start, end) in units of 8 bytes, and which arrivals were kept.
        ([(0, 2), (0, 2), (2, 6)], [0, 2]),
        ([(0, 4), (1, 2), (4, 6)], [0, 2]),
        ([(0, 2), (2, 4), (1, 3), (4, 6)], [0, 1, 3]),
        ([(0, 2), (1, 3), (2, 6)], None),
        ([(2, 4), (0, 2), (1, 3), (4, 6)], None),
        ([(2, 4), (0, 4), (4, 6)], None),
        ([(4, 6), (5, 6), (0, 4)], [2, 0]),
    ],
)
def test_what_the_kernel_did(coming: list[tuple[int, int]], kept: list[int] | None) -> None:
    made = Reassembler()
    parts = [bytes((number,)) * (b - a) * 8 for number, (a, b) in enumerate(coming)]
    found = feed(
        made, [piece(part, a * 8, b < 6) for part, (a, b) in zip(parts, coming, strict=True)]
    )
    wanted = [] if kept is None else [b"".join(parts[number] for number in kept)]
    assert [whole[20:] for whole in found] == wanted


def test_the_odd_end_of_a_fragment_in_the_middle_is_cut_off() -> None:
    made = Reassembler()
    assert feed(made, [piece(bytes(15), 0, True)]) == []
    (whole,) = feed(made, [piece(b"\1" * 5, 8, False)])
    assert whole[20:] == bytes(8) + b"\1" * 5
    assert feed(made, [piece(bytes(7), 0, True), piece(bytes(8), 8, False)]) == []


@pytest.mark.parametrize("make", [piece, piece6])
def test_a_fragment_without_payload_gives_the_datagram_up(make: Any) -> None:
    made = Reassembler()
    fragments = [make(bytes(8), 0, True), make(b"", 8, True), make(bytes(8), 8, False)]
    assert feed(made, fragments) == []
    assert len(feed(made, fragments[:1])) == 1  # what came last began anew


# --- how long a datagram may be ---


def long(end: int, make: Any, **more: Any) -> list[bytes]:
    """Return the fragments of a datagram whose payload has this length."""
    edges = [*range(0, end - 8, 1400), end]
    return [make(bytes(b - a), a, b < end, **more) for a, b in pairwise(edges)]


@pytest.mark.parametrize(
    ("end", "make", "more", "fits"),
    [
        (65515, piece, {}, True),
        (65516, piece, {}, False),
        (65528, piece, {}, False),
        (65511, piece, {"options": b"\1" * 4}, True),
        (65512, piece, {"options": b"\1" * 4}, False),
        (65535, piece6, {}, True),
        (65527, piece6, {"before": bytes((60, 0)) + bytes(6)}, True),
        (65528, piece6, {"before": bytes((60, 0)) + bytes(6)}, False),
    ],
)  # fmt: skip
def test_a_datagram_that_no_length_can_tell_is_given_up(
    end: int, make: Any, more: Any, fits: bool
) -> None:
    made = Reassembler()
    for _ in range(2):  # and it leaves nothing behind
        found = feed(made, long(end, make, **more))
        assert [len(whole) for whole in found] == ([end + len(found[0]) - end] if fits else [])
    if fits:
        parsed = parse(found[0])
        assert parsed is not None
        assert parsed.length == len(found[0])


# --- what the datagram is like ---


@pytest.mark.parametrize(
    ("sizes", "df", "whole_df"),
    [
        ((16, 8), (True, True), True),
        ((16, 8), (True, False), True),
        ((16, 8), (False, True), False),
        ((16, 16), (False, True), True),
        ((16, 16), (True, False), True),
        ((16, 8), (False, False), False),
        ((8, 16), (True, False), False),
        ((8, 16), (False, True), True),
    ],
)
def test_df_is_kept_where_the_largest_fragment_had_it(
    sizes: tuple[int, int], df: tuple[bool, bool], whole_df: bool
) -> None:
    fragments = [
        piece(bytes(sizes[0]), 0, True, df=df[0]),
        piece(bytes(sizes[1]), sizes[0], False, df=df[1]),
    ]
    for order in (fragments, fragments[::-1]):
        found = inet.IP(feed(Reassembler(), order)[0])
        assert (int(found.flags), found.frag) == (2 if whole_df else 0, 0)


def test_a_copy_that_is_ignored_says_nothing_about_df() -> None:
    made = Reassembler()
    fragments = [piece(bytes(16), 0, True), piece(bytes(16), 0, True, df=True)]
    (whole,) = feed(made, [*fragments, piece(bytes(8), 16, False)])
    assert whole[6:8] == b"\0\0"


def test_the_header_is_that_of_the_first_fragment() -> None:
    made = Reassembler()
    last = bytearray(piece(bytes(8), 8, False))
    last[1], last[8] = 0xB8, 1
    (whole,) = feed(made, [bytes(last), piece(bytes(8), 0, True, options=b"\1" * 8)])
    found = inet.IP(whole)
    assert (found.tos, found.ttl, found.ihl, found.len) == (0, 64, 7, 44)
    stated = found.chksum
    del found.chksum
    assert inet.IP(bytes(found)).chksum == stated


def test_bytes_behind_a_fragment_are_no_payload() -> None:
    for make, head in ((piece, 20), (piece6, 40)):
        parts = [make(b"\1" * 8, 0, True) + b"link", make(b"\2" * 3, 8, False) + b"link"]
        whole = [Reassembler().add(parts[0], 0.0)]
        made = Reassembler()
        whole = [made.add(part, 0.0) for part in parts]
        assert whole[1] is not None
        assert whole[1][head:] == b"\1" * 8 + b"\2" * 3
        assert whole[1].largest == len(parts[0]) - 4


# --- whose fragments they are ---


@pytest.mark.parametrize(
    "other",
    [
        {"src": "10.0.0.2"},
        {"src": "11.0.0.1"},
        {"dst": "192.168.1.177"},
        {"dst": "193.168.1.176"},
        {"identification": 2},
        {"identification": 257},
        {"protocol": 6},
    ],
)
def test_fragments_of_different_datagrams_are_kept_apart(other: Any) -> None:
    made = Reassembler()
    assert feed(made, [piece(bytes(8), 0, True), piece(bytes(8), 8, False, **other)]) == []
    assert len(feed(made, [piece(bytes(8), 0, True, **other)])) == 1
    assert len(feed(made, [piece(bytes(8), 8, False)])) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"source": "2001:db8:1::2"},
        {"source": "3001:db8:1::1"},
        {"target": "2001:db8::177"},
        {"identification": 2},
        {"identification": 0x01000001},
    ],
)
def test_fragments_of_different_ipv6_datagrams_are_kept_apart(other: Any) -> None:
    made = Reassembler()
    assert feed(made, [piece6(bytes(8), 0, True), piece6(bytes(8), 8, False, **other)]) == []
    assert len(feed(made, [piece6(bytes(8), 0, True, **other)])) == 1
    assert len(feed(made, [piece6(bytes(8), 8, False)])) == 1


def test_of_ipv6_the_first_fragment_names_what_is_inside() -> None:
    """RFC 8200: the next header of the others is not looked at."""
    made = Reassembler()
    (whole,) = feed(made, [piece6(bytes(8), 8, False, protocol=6), piece6(bytes(8), 0, True)])
    assert whole[6] == 17


def test_a_header_that_may_not_stand_there_is_no_place_for_fragments() -> None:
    """An authentication header covers the whole datagram, so it comes behind."""
    made = Reassembler()
    header = bytes((51, 4)) + bytes(22)
    assert made.add(piece6(bytes(8), 0, True, before=header), 0.0) is None
    assert made.add(piece6(bytes(8), 8, False, before=header), 0.0) is None


# --- datagrams that have a fragment header and are whole ---


@pytest.mark.parametrize("name", ["", "hop-by-hop", "routing", "destination"])
@pytest.mark.parametrize("behind", [False, True])
def test_the_fragment_header_of_a_whole_datagram_is_taken_out(name: str, behind: bool) -> None:
    """RFC 6946, "atomic fragments"; what is a fragment stays, and what has no such header."""
    headers = {
        "hop-by-hop": inet6.IPv6ExtHdrHopByHop(options=[inet6.PadN(optdata=bytes(4))]),
        "routing": inet6.IPv6ExtHdrRouting(addresses=["2001:db8:9::1"]),
        "destination": inet6.IPv6ExtHdrDestOpt(options=[inet6.PadN(optdata=bytes(12))]),
    }
    base: Packet = inet6.IPv6(src=CLIENT6, dst=VIP6, tc=0xB8, fl=5, hlim=9)
    if name:
        base /= headers[name]
    end: Packet = inet.UDP(sport=1, dport=2) / bytes(9)
    if behind:
        end = inet6.IPv6ExtHdrDestOpt(options=[inet6.PadN(optdata=bytes(4))]) / end
    plain = bytes(base / end)
    assert bare(bytes(base / inet6.IPv6ExtHdrFragment(id=9) / end)) == plain
    assert bare(bytes(base / inet6.IPv6ExtHdrFragment(id=9, res1=255, res2=3) / end)) == plain
    assert bare(plain) == plain
    for part in ({"m": 1}, {"offset": 1}, {"offset": 0x20}, {"offset": 0x1FFF}):
        fragment = bytes(base / inet6.IPv6ExtHdrFragment(id=9, **part) / end)
        assert bare(fragment) == fragment


@given(st.binary(min_size=40, max_size=120), st.sampled_from([0, 43, 44, 60, 17]))
def test_no_datagram_raises(raw: bytes, protocol: int) -> None:
    packet = raw[:6] + bytes((protocol,)) + raw[7:]
    if parse(packet) is not None:
        bare(packet)


# --- time ---


@pytest.mark.parametrize(("make", "seconds"), [(piece, 30.0), (piece6, 60.0)])
def test_what_stays_incomplete_is_forgotten(make: Any, seconds: float) -> None:
    """Counted from the first that came, whichever that is."""
    fragments = [make(bytes(8), 16, False), make(bytes(8), 8, True), make(bytes(8), 0, True)]
    for late, whole in ((0.001, 1), (0.0, 0)):
        made = Reassembler()
        feed(made, fragments[:1], 5.0)
        feed(made, fragments[1:2], 20.0)
        assert len(feed(made, fragments[2:], 5.0 + seconds - late)) == whole


def test_those_whose_first_fragment_came_earn_an_error() -> None:
    made = Reassembler()
    firsts = [piece(bytes(8), 0, True, identification=number) for number in (1, 2)]
    feed(made, firsts[:1], 1.0)
    feed(made, [piece(bytes(8), 8, False, identification=9)], 1.0)
    feed(made, firsts[1:], 2.0)
    six = piece6(bytes(8), 0, True)
    feed(made, [six], 2.0)
    assert made.expired(30.999) == []
    assert made.expired(31.0) == firsts[:1]
    assert made.expired(31.0) == []
    assert made.expired(61.999) == firsts[1:]
    assert made.expired(62.0) == [six]
    assert feed(made, [piece(bytes(8), 0, True, identification=9)], 62.0) == []  # forgotten too


# --- memory ---


def half(number: int, second: bool = False) -> bytes:
    """Return one of the two fragments of a datagram: 1004 bytes, and 28."""
    return piece(bytes(8 if second else 984), 984 * second, not second, identification=number)


def test_the_oldest_datagrams_give_way() -> None:
    made = Reassembler(limit=3000 + 3 * OVERHEAD)
    feed(made, [half(1), half(2)])
    assert feed(made, [half(3)]) == []  # 3012 bytes: the first goes
    assert len(feed(made, [half(2, second=True)])) == 1
    assert len(feed(made, [half(3, second=True)])) == 1
    assert feed(made, [half(1, second=True)]) == []


def test_up_to_the_limit_nothing_is_given_up() -> None:
    made = Reassembler(limit=3012 + 3 * OVERHEAD)
    feed(made, [half(number) for number in (1, 2, 3)])
    assert made.expired(29.0) == []
    assert len(made.expired(30.0)) == 3


@pytest.mark.parametrize("how", ["whole", "expired", "overlap", "late", "copies"])
def test_what_is_gone_makes_room(how: str) -> None:
    made = Reassembler(limit=2100 + 3 * OVERHEAD)
    for number in range(10):
        feed(made, [half(number)])
        if how == "whole":
            assert len(feed(made, [half(number, second=True)])) == 1
        elif how == "expired":
            assert len(made.expired(30.0)) == 1
        elif how == "overlap":
            feed(made, [piece(bytes(800), 800, True, identification=number)])
        elif how == "late":
            feed(made, [piece(b"", 8, True, identification=number)], 30.0)
        else:
            feed(made, [half(number)] * 3)
            assert len(feed(made, [half(number, second=True)])) == 1
    feed(made, [half(100), half(101)])
    assert len(made.expired(30.0)) == 2


def test_a_fragment_larger_than_the_limit_is_not_kept() -> None:
    made = Reassembler(limit=1000)
    assert feed(made, [half(1), half(1, second=True)]) == []
    assert len(made.expired(1e9)) == 0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6), st.booleans()), max_size=60))
def test_no_more_is_kept_than_the_limit(coming: list[tuple[int, int, bool]]) -> None:
    """Whatever comes; seen by what expires: one first fragment for each 28 bytes and the rest."""
    made = Reassembler(limit=10 * (28 + OVERHEAD))
    for number, offset, more in coming:
        if offset or more:
            made.add(piece(bytes(8), offset * 8, more, identification=number), 0.0)
    assert len(made.expired(30.0)) <= 10
    for number in range(10):  # and there is room for as many as there should be
        made.add(piece(bytes(8), 0, True, identification=number), 30.0)
    assert len(made.expired(60.0)) == 10


@given(st.binary(max_size=80), st.integers(0, 79), st.integers(0, 255), st.booleans())
def test_no_fragment_raises(junk: bytes, at: int, value: int, six: bool) -> None:
    """Whatever `parse` takes for one."""
    raw = bytearray(
        piece6(junk, 0, True, before=bytes(8)) if six else piece(junk, 8, True, options=bytes(4))
    )
    if at < len(raw):
        raw[at] = value
    parsed = parse(bytes(raw))
    if parsed is not None and parsed.fragment:
        Reassembler().add(bytes(raw), 0.0)
