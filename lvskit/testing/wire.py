"""Describe packets as the recordings do: as a tree of named fields.

Used by the vectors' runner alone; `lvskit.core.packet` reads the few fields that a director needs.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from lvskit.checksums import checksum

_FLAGS = ((2, "S"), (1, "F"), (4, "R"), (8, "P"), (16, "A"), (32, "U"), (64, "E"), (128, "C"))
_TUNNELS = {4: "ipip", 41: "ipv6-in-ip"}
_ERRORS_V4 = frozenset({3, 5, 11})
Tree = dict[str, Any]


def describe(packet: bytes) -> Tree:
    """Return the fields of `packet` under the names that recordings use."""
    if packet[0] >> 4 == 4:
        fields, body, protocol = _ipv4(packet)
    elif packet[0] >> 4 == 6:
        fields, body, protocol = _ipv6(packet)
    else:
        return {"hex": packet.hex()}
    if fields.get("frag"):
        return fields | {"proto": protocol, "payload_len": len(body)}
    if protocol in _TUNNELS:
        inside = {"payload_len": len(body)} if fields.get("mf") else {"inner": describe(body)}
        return fields | {"proto": _TUNNELS[protocol]} | inside
    return fields | _transport(protocol, body)


def _ipv4(packet: bytes) -> tuple[Tree, bytes, int]:
    size = (packet[0] & 15) * 4
    word = int.from_bytes(packet[6:8], "big")
    fields: Tree = {
        "ip": 4,
        "src": _text(packet[12:16]),
        "dst": _text(packet[16:20]),
        "tos": packet[1],
        "len": int.from_bytes(packet[2:4], "big"),
        "id": int.from_bytes(packet[4:6], "big"),
        "df": bool(word & 0x4000),
        "ttl": packet[8],
    }
    if word & 0x2000:
        fields["mf"] = True
    if word & 0x1FFF:
        fields["frag"] = word & 0x1FFF
    if size > 20:
        fields["options"] = packet[20:size].hex()
    if checksum(packet[:size]):
        fields["ip_csum_bad"] = True
    return fields, packet[size : fields["len"]], packet[9]


def _ipv6(packet: bytes) -> tuple[Tree, bytes, int]:
    word = int.from_bytes(packet[:4], "big")
    length = int.from_bytes(packet[4:6], "big")
    fields: Tree = {
        "ip": 6,
        "src": _text(packet[8:24]),
        "dst": _text(packet[24:40]),
        "tos": word >> 20 & 255,
        "flow": word & 0xFFFFF,
        "len": 40 + length,
        "ttl": packet[7],
    }
    return fields, packet[40 : 40 + length], packet[6]


def _transport(protocol: int, body: bytes) -> Tree:
    def number(start: int, size: int) -> int:
        return int.from_bytes(body[start : start + size], "big")

    if protocol == 6 and len(body) >= 20:
        flags = "".join(letter for bit, letter in _FLAGS if body[13] & bit)
        return {
            "proto": "tcp",
            "sport": number(0, 2),
            "dport": number(2, 2),
            "flags": flags,
            "seq": number(4, 4),
            "ack": number(8, 4),
            "payload_len": len(body) - (body[12] >> 4) * 4,
        }
    if protocol == 17 and len(body) >= 8:
        ports = {"sport": number(0, 2), "dport": number(2, 2)}
        return {"proto": "udp"} | ports | {"payload_len": number(4, 2) - 8}
    if protocol in (1, 58) and len(body) >= 8:
        return _icmp(protocol, body)
    if protocol in (6, 17):
        return {"proto": "tcp" if protocol == 6 else "udp", "body": body.hex()}
    return {"proto": protocol, "payload_len": len(body)}


def _icmp(protocol: int, body: bytes) -> Tree:
    kind = body[0]
    rest = int.from_bytes(body[4:8], "big")
    name = "icmp" if protocol == 1 else "icmp6"
    fields: Tree = {"proto": name, "type": kind, "code": body[1], "rest": rest}
    if kind in _ERRORS_V4 if protocol == 1 else kind < 128:
        fields["quote_len"] = len(body) - 8
        fields["quote"] = describe(body[8:])
    if protocol == 1 and checksum(body):
        fields["icmp_csum_bad"] = True
    return fields


def compare_to_sent(packet: bytes, sent: bytes) -> str | Tree | None:
    """Return `as-sent`, or `as-sent-but` another TTL, or None where more differs."""
    if packet == sent:
        return "as-sent"
    if not sent or len(packet) != len(sent):
        return None
    six = packet[0] >> 4 == 6
    at = 7 if six else 8
    changed = bytearray(sent)
    changed[at] = packet[at]
    if not six:
        size = (sent[0] & 15) * 4
        changed[10:12] = b"\0\0"
        changed[10:12] = checksum(bytes(changed[:size])).to_bytes(2, "big")
    return {"as-sent-but": {"ttl": packet[at]}} if bytes(changed) == packet else None


def emitted(packet: bytes, next_hop: str, sent: bytes) -> Tree:
    """Return how a recording lists `packet`, emitted after `sent` (empty: nothing) arrived.

    `next_hop` is the address of the neighbour that it went to.
    """
    fields = describe(packet)
    tunnelled = fields.get("proto") in _TUNNELS.values()
    entry: Tree = {"next_hop": _next_hop(next_hop)}
    entry["tunnelled_to"] = fields["dst"] if tunnelled else None
    if tunnelled and "inner" in fields:
        names = ("src", "dst", "tos", "ttl", "df", "len", "proto", "flow")
        inner = packet[20 if fields["ip"] == 4 else 40 :]
        entry["outer"] = {name: fields[name] for name in names if name in fields}
        same = compare_to_sent(inner, sent)
        entry["inner"] = same or fields["inner"]
        if not same:
            entry["inner_hex"] = inner.hex()
    else:
        fields.pop("id", None)
        entry["packet"] = compare_to_sent(packet, sent) or fields
    entry["hex"] = packet.hex()
    return entry


def _next_hop(address: str) -> str:
    """Return the neighbour that a packet to `address` goes to: a real server, or the gateway."""
    found = re.fullmatch(r"(?:192\.168\.1\.|2001:db8::)(\d+)", address)
    return f"x.{found[1]}" if found and 11 <= int(found[1]) <= 30 else "gw"


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))
