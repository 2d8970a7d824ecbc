"""CRC32c, the checksum of SCTP. Source: RFC 9260, appendix A."""

from __future__ import annotations

import struct
from functools import cache

_POLYNOMIAL = 0x82F63B78  # reflected


@cache
def _tables() -> tuple[list[int], list[int]]:
    """Return the remainder of each byte and of each 16-bit word, when first needed."""
    one = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        one.append(value)
    two = [one[one[n & 255] & 255 ^ n >> 8] ^ one[n & 255] >> 8 for n in range(65536)]
    return one, two


def crc32c(data: bytes | bytearray) -> int:
    """Return the CRC32c of `data`; an SCTP header has its bytes from low to high.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    one, two = _tables()
    value = 0xFFFFFFFF
    for word in struct.unpack(f"<{len(data) // 2}H", data[: len(data) & ~1]):
        value = value >> 16 ^ two[(value ^ word) & 0xFFFF]
    if len(data) & 1:
        value = value >> 8 ^ one[(value ^ data[-1]) & 0xFF]
    return value ^ 0xFFFFFFFF
