"""What a host's IP stack does with packets, as pure functions on bytes.

Sources: RFC 791, RFC 792, RFC 9293 section 3.10.7.1, RFC 1122 section 3.2.1.3.
"""

from __future__ import annotations

import ipaddress

from lvskit.checksums import checksum
from lvskit.core.packet import Parsed
from lvskit.core.states import CUT_SHORT
from lvskit.types import ICMP, TCP, UDP

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10


def sane(packet: bytes) -> bool:
    """Whether the IP header is whole and, for IPv4, its checksum right."""
    if len(packet) < 20:
        return False
    if packet[0] >> 4 == 6:
        return len(packet) >= 40
    size = (packet[0] & 15) * 4
    return packet[0] >> 4 == 4 and 20 <= size <= len(packet) and not checksum(packet[:size])


def plausible_source(address: bytes) -> bool:
    """Whether a packet from the wire may come from `address` (packed)."""
    value = ipaddress.ip_address(address)
    zero = len(address) == 4 and address[0] == 0
    broadcast = address == b"\xff" * 4
    return not (zero or broadcast or value.is_loopback or value.is_multicast)


def source_routed(packet: bytes) -> bool:
    """Whether an IPv4 packet has a source route option, which hosts do not accept (RFC 7126)."""
    size = (packet[0] & 15) * 4
    if packet[0] >> 4 != 4 or size == 20:
        return False
    at = 20
    while at < size and packet[at]:
        if packet[at] in (131, 137):
            return True
        at += 1 if packet[at] == 1 else max(packet[at + 1], 2) if at + 1 < size else size
    return False


def decremented(packet: bytes) -> bytes | None:
    """Return `packet` with its time to live one less; None where that ends it."""
    at = 8 if packet[0] >> 4 == 4 else 7
    if packet[at] <= 1:
        return None
    head = bytearray(packet)
    head[at] -= 1
    if at == 8:
        head[10:12] = b"\0\0"
        head[10:12] = checksum(bytes(head[: (head[0] & 15) * 4])).to_bytes(2, "big")
    return bytes(head)


def transport_intact(packet: bytes, parsed: Parsed) -> bool:
    """Whether a TCP or UDP header is whole, and its checksum right (0 in UDP over IPv4: none)."""
    if parsed.flags == CUT_SHORT:
        return False
    segment = packet[parsed.offset :]
    if parsed.protocol == UDP and segment[6:8] == b"\0\0":
        return parsed.version == 4
    return not checksum(_pseudo(parsed.src, parsed.dst, parsed.protocol, len(segment)) + segment)


def echo_reply(packet: bytes, parsed: Parsed) -> bytes | None:
    """Return the answer to a ping, None for any other ICMP message."""
    message = packet[parsed.offset :]
    request, reply = (8, 0) if parsed.protocol == ICMP else (128, 129)
    if len(message) < 8 or message[0] != request:
        return None
    body = bytes((reply, 0, 0, 0)) + message[4:]
    covered = body
    if parsed.protocol != ICMP:
        covered = _pseudo(parsed.dst, parsed.src, parsed.protocol, len(body)) + body
    body = body[:2] + checksum(covered).to_bytes(2, "big") + body[4:]
    return datagram(parsed.dst, parsed.src, parsed.protocol, body, df=False)


def reset(packet: bytes, parsed: Parsed) -> bytes | None:
    """Return the segment with which a closed TCP port answers, None to a reset."""
    if parsed.flags & RST:
        return None
    at = parsed.offset
    seq, ack = packet[at + 4 : at + 8], packet[at + 8 : at + 12]
    if parsed.flags & ACK:
        return _classed(segment(parsed, RST, int.from_bytes(ack, "big"), 0, window=0), packet)
    size = parsed.length - at - (packet[at + 12] >> 4) * 4
    counted = size + bool(parsed.flags & SYN) + bool(parsed.flags & FIN)
    answer = segment(parsed, RST | ACK, 0, int.from_bytes(seq, "big") + counted, window=0)
    return _classed(answer, packet)


def _classed(answer: bytes, packet: bytes) -> bytes:
    """Return a reset with the traffic class of the packet that it answers, but for ECN's bits.

    Linux tcp_ipv4.c, tcp_v4_send_reset; tcp_ipv6.c, tcp_v6_send_response.
    """
    if packet[0] >> 4 == 6:  # the class is the low half of one byte and the high one of the next
        return packet[:1] + bytes((packet[1] & 0xC0 | answer[1] & 0x0F,)) + answer[2:]
    head = answer[:1] + bytes((packet[1] & 0xFC,)) + answer[2:10] + b"\0\0" + answer[12:20]
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + answer[20:]


def segment(
    to: Parsed, flags: int, seq: int, ack: int, data: bytes = b"", *, window: int = 64240
) -> bytes:
    """Return a TCP segment that answers `to`: from its destination to its source."""
    return tcp((to.dst, to.dport), (to.src, to.sport), flags, seq, ack, data, window=window)


def tcp(
    source: tuple[bytes, int],
    target: tuple[bytes, int],
    flags: int,
    seq: int,
    ack: int,
    data: bytes = b"",
    *,
    window: int = 64240,
) -> bytes:
    """Return a TCP segment in an IP datagram; source and target are (packed address, port)."""
    body = (
        source[1].to_bytes(2, "big")
        + target[1].to_bytes(2, "big")
        + (seq & 0xFFFFFFFF).to_bytes(4, "big")
        + (ack & 0xFFFFFFFF).to_bytes(4, "big")
        + bytes((0x50, flags))
        + window.to_bytes(2, "big")
        + bytes(4)
        + data
    )
    total = checksum(_pseudo(source[0], target[0], TCP, len(body)) + body)
    body = body[:16] + total.to_bytes(2, "big") + body[18:]
    return datagram(source[0], target[0], TCP, body)


def datagram(source: bytes, target: bytes, protocol: int, body: bytes, *, df: bool = True) -> bytes:
    """Return an IPv4 or IPv6 datagram from packed `source` to `target`."""
    if len(source) == 16:
        head = bytes((0x60, 0, 0, 0)) + len(body).to_bytes(2, "big") + bytes((protocol, 64))
        return head + source + target + body
    head = (
        bytes((0x45, 0))
        + (20 + len(body)).to_bytes(2, "big")
        + bytes((0, 0, 0x40 if df else 0, 0, 64, protocol, 0, 0))
        + source
        + target
    )
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


def _pseudo(source: bytes, target: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 4:
        return source + target + bytes((0, protocol)) + length.to_bytes(2, "big")
    return source + target + length.to_bytes(4, "big") + bytes((0, 0, 0, protocol))
