"""Show a tunnelled packet as text: both headers, field by field, and the bytes."""

from __future__ import annotations

from collections.abc import Iterator

from lvskit.testing.wire import Tree, describe

_FLAG_NAMES = {"S": "SYN", "F": "FIN", "R": "RST", "P": "PSH", "A": "ACK", "U": "URG"}
_LINE = 16


def dissect(packet: bytes) -> str:
    """Return a table of an IPIP packet's headers, and its bytes."""
    outer = describe(packet)
    inner: Tree = outer["inner"]
    rows = [
        ("outer", _ip(outer), f"protocol 4 (IPIP): the director's, {len(packet)} bytes in all"),
        ("inner", _ip(inner), "the client's packet as it came, TTL one less"),
        ("", _tcp(inner), ""),
    ]
    width = max(len(text) for _, text, _ in rows)
    lines = [f"  {label:6} {text:{width}}  {note}".rstrip() for label, text, note in rows]
    return "\n".join([*lines, *_hex(packet)])


def _ip(fields: Tree) -> str:
    df = " DF" if fields.get("df") else ""
    addresses = f"{fields['src']} > {fields['dst']}"
    return f"IPv4 {addresses:31} ttl {fields['ttl']} length {fields['len']}{df}"


def _tcp(fields: Tree) -> str:
    if fields["proto"] != "tcp":
        return str(fields["proto"])
    flags = " ".join(_FLAG_NAMES.get(letter, letter) for letter in fields["flags"])
    return f"TCP  {fields['sport']} > {fields['dport']} {flags}, {fields['payload_len']} bytes"


def _hex(packet: bytes) -> Iterator[str]:
    """Yield the bytes, the outer header's 20 on lines of their own."""
    for start, end, label in ((0, 20, "outer"), (20, len(packet), "inner")):
        for at in range(start, min(end, 20 + 5 * _LINE), _LINE):
            text = packet[at : min(at + _LINE, end)].hex(" ")
            yield f"  {label if at == start else '':6} {at:04x}  {text}"
