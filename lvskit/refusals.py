"""Build the ICMP and ICMPv6 errors that a director sends in place of a packet that it refuses.

Sources: RFC 792, RFC 1191, RFC 4443. As the kernel does it: the source is the address that the
client spoke to (the VIP), an IPv4 error is 576 bytes at most, an IPv6 one 1,280.
"""

from __future__ import annotations

import enum
from typing import Final

from lvskit.checksums import checksum
from lvskit.types import Reason, Reply


class Refusal(enum.Enum):
    """What a client is told; the value is (type, code) for IPv4 and for IPv6, and the reason."""

    PORT_UNREACHABLE = ((3, 3), (1, 4), Reason.NO_SERVER)
    HOST_UNREACHABLE = ((3, 1), (1, 3), Reason.SERVER_UNREACHABLE)
    PROTOCOL_UNREACHABLE = ((3, 2), (4, 1), Reason.NO_SERVER)
    TOO_BIG = ((3, 4), (2, 0), Reason.TOO_BIG)
    TIME_EXCEEDED = ((11, 0), (3, 0), Reason.TTL_EXCEEDED)


_QUOTE_V4: Final = 576 - 20 - 8
_QUOTE_V6: Final = 1280 - 40 - 8
_INTERNETWORK_CONTROL: Final = 0xC0


def refuse(packet: bytes, refusal: Refusal, *, mtu: int = 0) -> Reply:
    """Return the ICMP error that answers `packet`.

    Args:
        packet: the IPv4 or IPv6 datagram that is refused; it is quoted.
        refusal: what to say.
        mtu: for `Refusal.TOO_BIG`, the largest datagram that fits, in bytes.
    """
    kind_v4, kind_v6, reason = refusal.value
    if packet[0] >> 4 == 4:
        return Reply(answer_v4(packet, kind_v4, mtu), reason)
    return Reply(_answer_v6(packet, kind_v6, mtu), reason)


def answer_v4(packet: bytes, kind: tuple[int, int], rest: int) -> bytes:
    """Return the ICMP error of `kind` (type and code) with the four bytes `rest` about `packet`."""
    message = bytes((*kind, 0, 0)) + rest.to_bytes(4, "big") + packet[:_QUOTE_V4]
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    # The identification is the refused packet's: it need only differ from datagrams to the same
    # client that are still under way, and this one is too small to be split.
    head = (
        bytes((0x45, _INTERNETWORK_CONTROL | packet[1] & 0x1E))
        + (20 + len(message)).to_bytes(2, "big")
        + packet[4:6]
        + bytes((0, 0, 64, 1, 0, 0))
        + packet[16:20]
        + packet[12:16]
    )
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + message


def _answer_v6(packet: bytes, kind: tuple[int, int], rest: int) -> bytes:
    message = bytes((*kind, 0, 0)) + rest.to_bytes(4, "big") + packet[:_QUOTE_V6]
    source, target = packet[24:40], packet[8:24]
    pseudo = source + target + len(message).to_bytes(4, "big") + bytes((0, 0, 0, 58))
    message = message[:2] + checksum(pseudo + message).to_bytes(2, "big") + message[4:]
    head = bytes((0x60, 0, 0, 0)) + len(message).to_bytes(2, "big") + bytes((58, 64))
    return head + source + target + message
