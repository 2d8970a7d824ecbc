"""Build the ICMP and ICMPv6 errors that a director sends; read those that it is sent.

Sources: RFC 792, RFC 1191, RFC 4443. As the kernel does it: the source is the address that the
client spoke to (the VIP), an IPv4 error is 576 bytes at most with TOS 0xc0, an IPv6 one 1,280.
"""

from __future__ import annotations

import enum
from typing import Final

from lvskit.core.packet import Parsed, checksum, parse_quoted
from lvskit.types import ICMP, Flow, Reason, Reply


class Refusal(enum.Enum):
    """What a client is told; the value is (type, code) for IPv4 and for IPv6."""

    PORT_UNREACHABLE = ((3, 3), (1, 4))
    HOST_UNREACHABLE = ((3, 1), (1, 3))
    PROTOCOL_UNREACHABLE = ((3, 2), (4, 1))
    TOO_BIG = ((3, 4), (2, 0))
    TIME_EXCEEDED = ((11, 0), (3, 0))


_REASONS: Final = {
    Refusal.PORT_UNREACHABLE: Reason.NO_SERVER,
    Refusal.HOST_UNREACHABLE: Reason.SERVER_UNREACHABLE,
    Refusal.PROTOCOL_UNREACHABLE: Reason.NO_SERVER,
    Refusal.TOO_BIG: Reason.TOO_BIG,
    Refusal.TIME_EXCEEDED: Reason.TTL_EXCEEDED,
}
_QUOTE_V4: Final = 576 - 20 - 8
_QUOTE_V6: Final = 1280 - 40 - 8
_RELAYED_V4: Final = frozenset({3, 4, 11})  # unreachable, source quench, time exceeded
_RELAYED_V6: Final = frozenset({1, 2, 3, 4})  # every error that RFC 4443 defines
_INTERNETWORK_CONTROL: Final = 0xC0


def refuse(packet: bytes, refusal: Refusal, *, mtu: int = 0) -> Reply:
    """Return the ICMP error that answers `packet`.

    Args:
        packet: the IPv4 or IPv6 datagram that is refused; it is quoted.
        refusal: what to say.
        mtu: for `Refusal.TOO_BIG`, the largest datagram that fits, in bytes.
    """
    build = _error_v4 if packet[0] >> 4 == 4 else _error_v6
    return Reply(build(packet, refusal, mtu), _REASONS[refusal])


def _error_v4(packet: bytes, refusal: Refusal, mtu: int) -> bytes:
    kind, code = refusal.value[0]
    message = bytes((kind, code, 0, 0)) + mtu.to_bytes(4, "big") + packet[:_QUOTE_V4]
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    # The identification is the refused packet's: it need only differ from datagrams to the same
    # client that are still under way, and this one is too small to be split.
    head = (
        bytes((0x45, _INTERNETWORK_CONTROL))
        + (20 + len(message)).to_bytes(2, "big")
        + packet[4:6]
        + bytes((0, 0, 64, 1, 0, 0))
        + packet[16:20]
        + packet[12:16]
    )
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + message


def _error_v6(packet: bytes, refusal: Refusal, mtu: int) -> bytes:
    kind, code = refusal.value[1]
    message = bytes((kind, code, 0, 0)) + mtu.to_bytes(4, "big") + packet[:_QUOTE_V6]
    source, target = packet[24:40], packet[8:24]
    pseudo = source + target + len(message).to_bytes(4, "big") + bytes((0, 0, 0, 58))
    message = message[:2] + checksum(pseudo + message).to_bytes(2, "big") + message[4:]
    head = bytes((0x60, 0, 0, 0)) + len(message).to_bytes(2, "big") + bytes((58, 64))
    return head + source + target + message


def quoted_reply(packet: bytes, parsed: Parsed) -> Flow | None:
    """Return the flow whose server sent the datagram that an ICMP error in `packet` quotes.

    None where it is no error of the kinds that are relayed, or quotes too little: the quoted IP
    header and four bytes behind it, the ports, must be there (RFC 792 promises eight).
    """
    message = packet[parsed.offset :]
    relayed = _RELAYED_V4 if parsed.protocol == ICMP else _RELAYED_V6
    if parsed.fragment or len(message) < 8 or message[0] not in relayed:
        return None
    quoted = parse_quoted(message[8:])
    if quoted is None:
        return None
    return Flow(quoted.protocol, quoted.dst, quoted.dport, quoted.src, quoted.sport)
