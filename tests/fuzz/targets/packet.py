"""Bytes from the wire: whatever reads them finds nothing outside them, and raises nothing."""

from __future__ import annotations

from fuzzkit import wire

from lvskit.core.icmp import Refusal, read_error, refuse
from lvskit.core.packet import Parsed, checksum, parse, parse_quoted
from lvskit.datapath.fragments import fragment, fragment_v6
from lvskit.hostsetup.decapsulator import inner_packet
from lvskit.types import ICMP, ICMPV6

_MTUS = (68, 576, 1280)
_VIP = bytes((192, 0, 2, 1))


def check(data: bytes) -> None:
    quoted = parse_quoted(data)
    if quoted is not None:
        _check_fields(quoted, data)
    for ecn in (0, 3):
        inner = inner_packet(data, frozenset((_VIP, data[16:20], data[24:40])), ecn)
        assert inner is None or len(inner) <= len(data)
    checksum(data)
    parsed = parse(data)
    if parsed is None:
        return
    _check_fields(parsed, data)
    assert parsed.offset <= parsed.length <= len(data)
    assert parse(data[: parsed.length]) == parsed, "what follows the end counts for nothing"
    packet = data[: parsed.length]
    if parsed.protocol in (ICMP, ICMPV6):
        error = read_error(packet, parsed)
        assert error is None or len(error.quote) == parsed.length - parsed.offset - 8
    for refusal in Refusal:
        wire.check_error(refuse(packet, refusal, mtu=1400).packet, sound=False)
    _check_fragments(packet)


def _check_fields(parsed: Parsed, data: bytes) -> None:
    assert parsed.version == data[0] >> 4
    assert len(parsed.src) == len(parsed.dst) == (4 if parsed.version == 4 else 16)
    assert len(parsed.flow.key) == (12 if parsed.version == 4 else 36)


def _check_fragments(packet: bytes) -> None:
    """Cut `packet` up as the host would, which is done to headers without options alone."""
    header = 20 if packet[0] == 0x45 else 40
    if packet[0] >> 4 == 4 and header != 20:
        return
    for mtu in _MTUS:
        if len(packet) <= mtu or packet[6] & 0x40:
            continue
        pieces = fragment(packet, mtu) if header == 20 else fragment_v6(packet, mtu, 1)
        assert all(len(piece) <= mtu for piece in pieces)
        extra = 0 if header == 20 else 8
        assert b"".join(piece[header + extra :] for piece in pieces) == packet[header:]
