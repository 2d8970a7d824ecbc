"""Packets that are unusual below the transport: options, fragments, damaged headers."""

from __future__ import annotations

from dice import Dice

from lvskit import checksum
from lvskit.testing import packets

_OPTIONS = {
    "no operation": "01010101",
    "end of list": "01010100",
    "router alert": "94040000",
    "stream id": "88040001",
    "unknown": "9e040000",
    "loose source route": "8307040a01010100",
}
_DESTINATION, _HOP_BY_HOP, _FRAGMENT = 60, 0, 44


def options(dice: Dice, packet: bytes) -> tuple[bytes, str]:
    """Return `packet` with IP options, or with an extension header, and what was done."""
    if packet[0] >> 4 == 6:
        kind = dice.pick((_DESTINATION, _HOP_BY_HOP))
        header = bytes((packet[6], 0, 1, 4, 0, 0, 0, 0))
        size = len(packet) - 40 + len(header)
        head = packet[:4] + size.to_bytes(2, "big") + bytes((kind,)) + packet[7:40]
        return head + header + packet[40:], f"extension header {kind}"
    name = dice.pick(sorted(_OPTIONS))
    extra = bytes.fromhex(_OPTIONS[name])
    head = bytearray(packet[:20] + extra)
    head[0] = 0x40 | len(head) // 4
    head[2:4] = (len(head) + len(packet) - 20).to_bytes(2, "big")
    return _summed(head) + packet[20:], f"option: {name}"


def damaged(dice: Dice, packet: bytes) -> tuple[bytes, str]:
    """Return `packet` with something wrong, and what."""
    four = packet[0] >> 4 == 4
    at = 20 if four else 40
    kind = dice.pick(("cut", "padded", "short", "transport", "source", "checksum", "byte"))
    changed = bytearray(packet)
    if kind == "cut":
        return packet[: dice.between(at, len(packet) - 1)], "cut, but the length says more"
    if kind == "padded":
        return packet + bytes(dice.between(1, 8)), "with padding behind it"
    if kind == "short":
        size = dice.between(at, len(packet) - 1)
        if four:
            changed[2:4] = size.to_bytes(2, "big")
            return _summed(changed[:20]) + bytes(changed[20:size]), "the length says less"
        changed[4:6] = (size - 40).to_bytes(2, "big")
        return bytes(changed[:size]), "the length says less"
    if kind == "transport":
        changed[at + dice.pick((4, 5, 6, 7, 12, 16, 17)) % (len(packet) - at)] ^= 0x40
        return bytes(changed), "damaged in the transport header"
    if kind == "source" and four:
        source = dice.pick(
            ("0.0.0.0", "127.0.0.1", "255.255.255.255", "224.0.0.5", "192.168.1.176")
        )
        changed[12:16] = packets.address(source)
        return _summed(changed[:20]) + bytes(changed[20:]), f"from {source}"
    if kind == "checksum" and four:
        changed[10] ^= 1
        return bytes(changed), "damaged IP checksum"
    changed[dice.between(at, len(packet) - 1)] ^= 1 << dice.between(0, 7)
    return bytes(changed), "a bit flipped"


def fragments(
    source: str, target: str, protocol: int, body: bytes, size: int, identification: int
) -> list[bytes]:
    """Return the fragments of a datagram, each with `size` bytes of it, a multiple of 8."""
    parts = []
    for start in range(0, len(body), size):
        part, more = body[start : start + size], start + size < len(body)
        if ":" in source:
            place = (start | more).to_bytes(2, "big")
            header = bytes((protocol, 0)) + place + identification.to_bytes(4, "big")
            parts.append(packets.ip(source, target, _FRAGMENT, header + part))
        else:
            parts.append(
                packets.ip(
                    source,
                    target,
                    protocol,
                    part,
                    df=False,
                    more=more,
                    offset=start // 8,
                    identification=identification,
                )
            )
    return parts


def crc32c(data: bytes) -> int:
    """Return the checksum of SCTP (RFC 9260, appendix A) over `data`."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
    return value ^ 0xFFFFFFFF


def _summed(head: bytes | bytearray) -> bytes:
    """Return an IPv4 header with its checksum."""
    blank = bytes(head[:10]) + b"\0\0" + bytes(head[12:])
    return blank[:10] + checksum(blank).to_bytes(2, "big") + blank[12:]
