"""Generic routing encapsulation: a header of 4 bytes, 8 with a checksum. Source: RFC 2784."""

from __future__ import annotations

from typing import ClassVar, Final

from lvskit import Connection, Transmit, Verdict, checksum
from lvskit_fwd_tunnel.outer import Tunnel

_CHECKSUM: Final = 0x80  # flag: there is one
_ETHERTYPES: Final = {4: b"\x08\x00", 6: b"\x86\xdd"}


class Gre(Tunnel):
    """GRE without a key, a checksum and sequence numbers."""

    protocols: ClassVar = {4: 47, 6: 47}
    overhead = 4

    def _between(self, version: int, length: int) -> bytes:
        return bytes(2) + _ETHERTYPES[version]

    def _inside(self, payload: bytes) -> bytes:
        # With or without a checksum, and nothing else: ip_vs_core.c, ipvs_gre_decap.
        if payload[:4] == bytes(2) + _ETHERTYPES[4]:
            return payload[4:]
        return payload[8:] if payload[:4] == bytes((_CHECKSUM, 0)) + _ETHERTYPES[4] else b""


class SummedGre(Gre):
    """GRE with a checksum."""

    overhead = 8

    def transmit(self, connection: Connection, packet: bytes) -> Verdict:
        """Return the packet in its tunnel, or the ICMP error that it earns."""
        verdict = super().transmit(connection, packet)
        if type(verdict) is not Transmit:
            return verdict
        raw, at = verdict.packet, self._size
        total = checksum(raw[at:]).to_bytes(2, "big")
        return Transmit(b"%b%b%b" % (raw[: at + 4], total, raw[at + 6 :]), self._route)

    def _between(self, version: int, length: int) -> bytes:
        return bytes((_CHECKSUM, 0)) + _ETHERTYPES[version] + bytes(4)
