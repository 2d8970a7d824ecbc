"""The live datapath's messages and choices, without a kernel to send them to."""

from __future__ import annotations

import struct
import subprocess
import sys
from itertools import count

import pytest

from lvskit.datapath.fragments import fragment_v6
from lvskit.datapath.live import LiveOptions
from lvskit.datapath.live.netlink import (
    Message,
    attribute,
    attributes,
    be16,
    be32,
    nested,
    spans,
    split,
    text,
)
from lvskit.datapath.live.nfqueue import ACCEPT, PacketQueue, Queued, whole
from lvskit.datapath.live.nftables import FORWARD, INPUT
from lvskit.datapath.live.sender import Sender
from lvskit.datapath.live.sets import Claims, Endpoint, contents
from lvskit.settings import ServiceKey
from lvskit.types import Reassembled

VIP = bytes((10, 0, 0, 2))
SERVER = bytes((10, 0, 0, 9))
VIP6 = bytes.fromhex("fd00") + bytes(13) + b"\2"


class FakeSocket:
    """Gives out datagrams, then has nothing more."""

    def __init__(self, *datagrams: bytes) -> None:
        self._datagrams = list(datagrams)
        self.sent: list[bytes] = []

    def recv(self, size: int) -> bytes:
        if not self._datagrams:
            raise BlockingIOError(11, "nothing")
        return self._datagrams.pop(0)

    def send(self, data: bytes) -> None:
        self.sent.append(data)


def queue(*datagrams: bytes) -> PacketQueue:
    made = PacketQueue.__new__(PacketQueue)
    made.number, made.refused = 7, 0
    made._socket = FakeSocket(*datagrams)
    made._prefix_end, made._layouts = 0, {}
    made._verdict, made._place = b"HEAD", b"PLACE"
    return made


def queued(number: int, packet: bytes, *others: bytes, hook: int = INPUT) -> bytes:
    """Return a message of the packet queue, as the kernel lays it out."""
    head = attribute(1, struct.pack(">IHB", number, 0x0800, hook))
    body = bytes((2, 0, 0, 7)) + head + attribute(5, bytes((0, 0, 0, 9))) + b"".join(others)
    body += struct.pack("=HH", 4 + len(packet), 10) + packet  # the last one, and not padded
    return struct.pack("=IHHII", 16 + len(body), 3 << 8, 0, 0, 0) + body


def test_attributes_are_padded_and_found_again():
    data = attribute(1, b"abc") + be16(2, 0x1234) + be32(3, -1) + text(4, "hi")
    assert len(data) % 4 == 0
    assert attributes(data, 0) == {1: b"abc", 2: b"\x12\x34", 3: b"\xff\xff\xff\xff", 4: b"hi\0"}
    outer = nested(5, data)
    assert attributes(outer, 0) == {5: data}


def test_cut_short_attributes_and_messages_end_the_walk():
    assert list(spans(attribute(1, b"abcd")[:-1], 0)) == []
    assert list(spans(b"\0\0\1\0", 0)) == []
    whole = struct.pack("=IHHII", 20, 24, 2, 5, 0) + b"body"
    assert list(split(whole + whole[:18])) == [Message(24, 2, 5, b"body")]
    assert list(split(struct.pack("=IHHII", 3, 24, 2, 5, 0))) == []


def test_a_queue_reads_packets_and_marks():
    mark = be32(3, 5)
    datagrams = [
        queued(1, b"one"),
        queued(2, b"three"),
        queued(3, b"marked", mark),
        queued(4, b"again"),
        queued(5, b"again", mark),
        queued(6, b"answer", hook=FORWARD),
        queued(7, b"asked"),
        queued(8, b"answer", hook=FORWARD),
    ]
    expected = [
        Queued((1).to_bytes(4, "big"), b"one", 0, INPUT),
        Queued((2).to_bytes(4, "big"), b"three", 0, INPUT),
        Queued((3).to_bytes(4, "big"), b"marked", 5, INPUT),
        Queued((4).to_bytes(4, "big"), b"again", 0, INPUT),
        Queued((5).to_bytes(4, "big"), b"again", 5, INPUT),
        Queued((6).to_bytes(4, "big"), b"answer", 0, FORWARD),
        Queued((7).to_bytes(4, "big"), b"asked", 0, INPUT),
        Queued((8).to_bytes(4, "big"), b"answer", 0, FORWARD),
    ]
    assert queue(*datagrams).read(10) == expected
    assert queue(*datagrams).read(2) == expected[:2]


def test_one_attribute_more_behind_a_known_layout_is_noticed():
    # A datagram that was put together from fragments has NFQA_SKB_INFO before its payload.
    reassembled = queued(2, b"two", be32(14, 4))
    found = queue(queued(1, b"one"), reassembled, queued(3, b"six")).read(10)
    assert [packet for _, packet, *_ in found] == [b"one", b"two", b"six"]


def test_a_refused_verdict_is_no_packet():
    error = struct.pack("=IHHIIi", 36, 2, 0, 0, 0, -2) + bytes(16)
    made = queue(error, queued(1, b"one"))
    assert [packet for _, packet, *_ in made.read(10)] == [b"one"]
    assert made.refused == 1


def test_verdicts_of_many_packets_go_in_one_call():
    made = queue()
    made.answer([(b"drop", b"0001", b""), (b"pass", b"0002", b"")])
    assert made._socket.sent == [b"HEADdrop0001HEADpass0002"]


def test_a_changed_packet_goes_with_its_own_verdict():
    made = queue()
    made.answer([(b"drop", b"0001", b""), (ACCEPT, b"0002", b"other"), (b"drop", b"0003", b"")])
    body = b"PLACE" + ACCEPT + b"0002" + attribute(10, b"other")
    message = struct.pack("=IHHII", 16 + len(body), 3 << 8 | 1, 1, 0, 0) + body
    assert made._socket.sent == [b"HEADdrop0001" + message + b"HEADdrop0003"]


def test_many_changed_packets_go_in_several_calls():
    # One send may be no larger than the socket's buffer.
    made = queue()
    made.answer([(ACCEPT, b"%04d" % n, bytes(1500)) for n in range(128)])
    assert len(made._socket.sent) > 1
    assert max(map(len, made._socket.sent)) < 70_000
    assert sum(map(len, made._socket.sent)) > 128 * 1500


def test_a_logged_header_is_filled_up_to_its_length():
    v4 = bytes((0x45, 0, 1, 0)) + bytes(60)
    assert whole(v4) == v4 + bytes(256 - 64)
    v6 = bytes((0x60, 0, 0, 0, 0, 100)) + bytes(58)
    assert len(whole(v6)) == 140
    assert whole(b"") == b""


def test_what_the_sets_hold():
    claims = Claims(
        frozenset(
            {
                ServiceKey.of(6, VIP, 80),
                ServiceKey.of(17, VIP, 0),
                ServiceKey.of(6, VIP6, 443),
                ServiceKey.mark(0x01020304, 6),
            }
        ),
        frozenset({SERVER, VIP6}),
        frozenset({Endpoint(6, SERVER, 8080), Endpoint(0, SERVER, 0)}),
    )
    found = contents(claims)
    errors = found.pop("errors")
    assert len(errors) == 7
    tcp, udp, sctp, icmp6, inet6 = (bytes((value, 0, 0, 0)) for value in (6, 17, 132, 58, 10))
    mark = (0x01020304).to_bytes(4, sys.byteorder)
    assert found == {
        "services4": {VIP + tcp + b"\0\x50\0\0"},
        "services6": {VIP6 + tcp + b"\x01\xbb\0\0"},
        "allports4": {VIP + udp},
        "allports6": set(),
        "addresses4": {VIP},
        "addresses6": {VIP6},
        "marks": {inet6 + tcp + mark, inet6 + udp + mark, inet6 + sctp + mark},
        "marked": {inet6 + tcp, inet6 + udp, inet6 + sctp, inet6 + icmp6},
        "servers4": {SERVER},
        "servers6": {VIP6},
        "answers4": {SERVER + tcp + b"\x1f\x90\0\0"},
        "answers6": set(),
        "allanswers4": {SERVER + tcp, SERVER + udp, SERVER + sctp},
        "allanswers6": set(),
    }


def v4(size: int, identification: int = 7, flags: int = 0) -> bytes:
    """Return an IPv4 datagram of `size` bytes; `flags` are the upper byte of flags and offset."""
    head = bytes((0x45, 0)) + size.to_bytes(2, "big") + identification.to_bytes(2, "big")
    return (head + bytes((flags, 0, 64, 17, 0, 0)) + VIP + SERVER).ljust(size, b"x")


class FakeSender(Sender):
    """Keeps what it would send, and to where."""

    def __init__(self) -> None:
        self.failed, self._addresses, self._identifications = {}, {}, count()
        self.sent: list[tuple[bytes, str]] = []
        self._v4 = self._v6 = lambda packet, target: self.sent.append((packet, target[0]))


def test_a_packet_goes_by_the_way_that_it_is_told():
    sender = FakeSender()
    sender.send_to(v4(100), VIP, 1500)
    sender.send_to(v4(100), b"", 1500)
    assert sender.sent == [(v4(100), "10.0.0.2"), (v4(100), "10.0.0.9")]


def test_what_is_too_large_is_split_where_it_may_be():
    sender = FakeSender()
    sender.send_to(v4(1000, flags=0x40), b"", 500)
    assert not sender.sent
    assert sum(sender.failed.values()) == 1
    sender.send_to(v4(1000, flags=0x40), b"", 500, Reassembled(v4(1000, flags=0x40), 1000, ()))
    assert [packet[6] & 0xE0 for packet, _ in sender.sent] == [0x60, 0x60, 0x40]
    sender.sent.clear()
    sender.send_to(v4(1000, 0), b"", 500)
    assert [packet[6] & 0xE0 for packet, _ in sender.sent] == [0x20, 0x20, 0]
    # The kernel gives one to packets that have none, and would give each part another.
    (identification,) = {packet[4:6] for packet, _ in sender.sent}
    assert identification != b"\0\0"


def test_ipv6_fragments_make_the_whole_again():
    payload = bytes(range(256)) * 12
    packet = bytes((0x60, 1, 2, 3)) + len(payload).to_bytes(2, "big") + bytes((41, 63)) + bytes(32)
    parts = fragment_v6(packet + payload, 1280, 0x01020304)
    assert all(len(part) <= 1280 for part in parts)
    joined = b""
    for part in parts:
        assert part[:4] == packet[:4]
        assert part[6:40] == bytes((44,)) + packet[7:]
        assert int.from_bytes(part[4:6], "big") == len(part) - 40
        assert part[40:42] == bytes((41, 0))
        assert part[44:48] == b"\1\2\3\4"
        offset = int.from_bytes(part[42:44], "big")
        assert offset & ~7 == len(joined)
        assert offset & 1 == (part is not parts[-1])
        joined += part[48:]
    assert joined == payload


@pytest.mark.parametrize(
    "wrong",
    [{"queue": -1}, {"queue": 65536}, {"length": 0}, {"on_stop": "maybe"}, {"table": ""}],
)
def test_options_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LiveOptions(**wrong)


def test_nothing_heavy_is_imported():
    program = "import lvskit.datapath.live, sys; print({'pyroute2', 'scapy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
