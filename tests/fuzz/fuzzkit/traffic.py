"""Choose packets of every kind that a director may be sent, right ones and wrong ones."""

from __future__ import annotations

from typing import NamedTuple

from fuzzkit.source import Source
from scapy.layers.sctp import crc32c

from lvskit.datapath.fragments import fragment, fragment_v6
from lvskit.testing import packets
from lvskit.types import ICMP, ICMPV6, SCTP, TCP, UDP

CLIENTS = {
    4: [packets.address(f"10.0.{net}.{host}") for net in (0, 1) for host in (1, 2)],
    6: [packets.address(f"2001:db8:c::{host}") for host in (1, 2)],
}
_EXTENSIONS = (0, 43, 44, 51, 60, 135)
_OPTIONS = (b"\1\1\1\0", b"\x94\4\0\0", b"\x07\7\4" + bytes(5), b"\x44\x0c\5\0" + bytes(8))
_TCP_FLAGS = (2, 2, 2, 16, 17, 4, 24, 18)
_SCTP_CHUNKS = (1, 1, 2, 0, 3, 6, 7, 8, 10, 11, 14, 255)
_SIZES = (0, 0, 1, 8, 36, 500, 1200, 1472)
_LARGE = (8000, 65000)
_SHAPES = ("plain", "plain", "plain", "options", "fragments", "wild fragment", "broken")
_LARGEST = 65535
_PIECES = 8
_MOST_SCTP = 100  # scapy takes its time over the CRC
_WILD = 0x8000
"""Fragments that belong to nothing have identifications from here on."""


class Sent(NamedTuple):
    """A packet to send.

    Attributes:
        packet: one datagram.
        sound: it is right down to its last checksum.
    """

    packet: bytes
    sound: bool


class Ends(NamedTuple):
    """Where a packet goes from and to: addresses packed, protocol, ports."""

    protocol: int
    src: bytes
    sport: int
    dst: bytes
    dport: int

    @property
    def back(self) -> Ends:
        """The other direction."""
        return Ends(self.protocol, self.dst, self.dport, self.src, self.sport)


def segment(source: Source, ends: Ends) -> bytes:
    """Choose a datagram of TCP, UDP or SCTP, whole and right."""
    size = source.pick(_SIZES) if source.number(0, 31) else source.pick(_LARGE)
    payload = bytes(size)
    ttl, tos, df = 64, 0, True
    if source.number(0, 3) == 3:
        ttl = source.pick((64, 2, 1, 0, 255))
        tos = source.pick((0, 3, 0xB8, 0xFF))
        df = bool(source.number(0, 1))
    if ends.protocol == TCP:
        flags = source.pick(_TCP_FLAGS) if source.number(0, 7) else _byte(source)
        return packets.tcp(*ends[1:], flags, payload=payload, ttl=ttl, tos=tos, df=df)
    if ends.protocol == UDP:
        return packets.udp(*ends[1:], payload=payload, ttl=ttl, tos=tos, df=df)
    payload = payload[:_MOST_SCTP]
    chunk = bytes((source.pick(_SCTP_CHUNKS), source.pick((0, 1)))) + (4 + len(payload)).to_bytes(
        2, "big"
    )
    head = ends.sport.to_bytes(2, "big") + ends.dport.to_bytes(2, "big") + bytes(4)
    body = chunk + payload + bytes(-len(payload) & 3)
    total = crc32c(head + bytes(4) + body).to_bytes(4, "big")
    return packets.ip(ends.src, ends.dst, SCTP, head + total + body, ttl=ttl, tos=tos, df=df)


def sends(source: Source, ends: Ends, identification: int) -> list[Sent]:
    """Choose a client's datagram, perhaps dressed up, cut up or broken.

    Args:
        source: of the choices.
        ends: from whom to whom.
        identification: of this datagram's fragments, not used before; below `_WILD`.
    """
    packet = segment(source, ends)
    if len(packet) > _LARGEST:
        return []
    shape = source.pick(_SHAPES)
    if shape == "options":
        packet = _with_extensions(source, packet)
        return [Sent(packet, True)] if len(packet) <= _LARGEST else []
    if shape == "fragments":
        pieces = [Sent(piece, True) for piece in _pieces(source, packet, identification)]
        order = source.pick((1, -1, 2))
        return pieces[::order] + pieces[1::2] * (order == 2)
    if shape == "wild fragment":
        return [_wild_fragment(source, packet)]
    return [Sent(packet, True)] if shape == "plain" else [Sent(broken(source, packet), False)]


def error(source: Source, about: Sent, src: bytes, dst: bytes) -> Sent:
    """Choose an ICMP error about a packet, or an echo."""
    quote = about.packet[: source.pick((_LARGEST, 28, 48, 20, 0, 548, 41))][:1200]
    if len(dst) == 4:
        kind, code = source.pick(((3, 4), (3, 3), (3, 1), (11, 0), (4, 0), (12, 0), (8, 0), (0, 0)))
    else:
        kind, code = source.pick(((2, 0), (1, 4), (1, 3), (3, 0), (4, 1), (128, 0), (129, 0)))
    rest = source.pick((0, 1400, 1280, 68, 576, 1, 0xFFFF, 2**32 - 1))
    packet = packets.icmp_error(src, dst, kind, code, quote, rest=rest)
    if source.number(0, 7) == 7:
        return Sent(broken(source, packet), False)
    return Sent(packet, about.sound)


def broken(source: Source, packet: bytes) -> bytes:
    """Change bytes of `packet`, cut it short, or lengthen it."""
    made = bytearray(packet)
    for _ in range(source.number(1, 4)):
        # Mostly within the headers, where it matters.
        if made:
            made[source.number(0, min(len(made), 100) - 1)] = _byte(source)
    cut = source.pick((None, None, None, 0, 1, 19, 20, 24, 33, 39, 40, 60))
    return bytes(made[:cut]) + source.blob(16)


def anything(source: Source) -> Sent:
    """Choose any bytes at all."""
    return Sent(source.blob(255), False)


def protocol_of_errors(version: int) -> int:
    return ICMP if version == 4 else ICMPV6


def _byte(source: Source) -> int:
    return source.number(0, 255)


def _with_extensions(source: Source, packet: bytes) -> bytes:
    """Put options into an IPv4 header, extension headers behind an IPv6 one."""
    if packet[0] >> 4 == 4:
        options = b"".join(source.pick(_OPTIONS) for _ in range(source.number(0, 3)))[:40]
        df = bool(packet[6] & 0x40)
        return packets.ip(
            packet[12:16], packet[16:20], packet[9], packet[20:], ttl=packet[8], tos=packet[1],
            df=df, options=options[: len(options) & ~3],
        )  # fmt: skip
    following, chain = packet[6], b""
    for _ in range(source.number(0, 9)):
        kind, units = source.pick(_EXTENSIONS), source.number(0, 3)
        if kind == 44:
            header = bytes((following, 0)) + bytes(6)
        elif kind == 51:
            header = bytes((following, 2 * units + 2)) + bytes(8 * units + 14)
        else:
            header = bytes((following, units)) + b"\0" * (8 * units + 6)
        following, chain = kind, header + chain
    size = (len(chain) + len(packet) - 40).to_bytes(2, "big", signed=False)
    return packet[:4] + size + bytes((following,)) + packet[7:40] + chain + packet[40:]


def _pieces(source: Source, packet: bytes, identification: int) -> list[bytes]:
    mtu = max(source.pick((1280, 600, 68, 100)), len(packet) // _PIECES)
    if packet[0] >> 4 == 6:
        return fragment_v6(packet, mtu, identification)
    whole = packets.ip(
        packet[12:16], packet[16:20], packet[9], packet[20:], ttl=packet[8], tos=packet[1],
        df=False, identification=identification,
    )  # fmt: skip
    return fragment(whole, mtu)


def _wild_fragment(source: Source, packet: bytes) -> Sent:
    """Choose a fragment that may overlap others, reach too far, or belong to nothing."""
    offset = source.pick((0, 1, 2, 3, 4, 100, 8191))
    more = bool(source.number(0, 1))
    identification = _WILD + source.number(0, 3)
    size = source.pick((8, 16, 24, 25, 0, 1400))
    if packet[0] >> 4 == 6:
        word = (offset << 3 | more).to_bytes(2, "big")
        header = bytes((packet[6], 0)) + word + identification.to_bytes(4, "big")
        payload = header + packet[40 : 40 + size]
        length = len(payload).to_bytes(2, "big")
        return Sent(packet[:4] + length + b"\x2c" + packet[7:40] + payload, False)
    piece = packets.ip(
        packet[12:16], packet[16:20], packet[9], packet[20 : 20 + size], df=False, more=more,
        offset=offset, identification=identification,
    )  # fmt: skip
    return Sent(piece, False)
