"""Bytes from the wire: whatever reads them finds nothing outside them, and raises nothing."""

from __future__ import annotations

from fuzzkit import wire

from lvskit.checksums import checksum
from lvskit.core.icmp import read_error
from lvskit.core.packet import Parsed, parse, parse_quoted
from lvskit.datapath.fragments import fragment, fragment_v6
from lvskit.datapath.reassembly import Reassembler
from lvskit.hostsetup.decapsulator import inner_packet
from lvskit.refusals import Refusal, refuse
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
    if packet[0] >> 4 == 6:
        parts = fragment_v6(packet, _MTUS[-1], 1)
        assert all(len(part) <= _MTUS[-1] for part in parts)
        made = Reassembler()
        whole = [made.add(part, 0.0) for part in parts]
        assert not whole or whole[-1] == packet
    elif packet[0] == 0x45:
        for mtu in _MTUS:
            if len(packet) <= mtu or packet[6] & 0x40:
                continue
            parts = fragment(packet, mtu)
            assert all(len(part) <= mtu for part in parts)
            assert b"".join(part[20:] for part in parts) == packet[20:]
