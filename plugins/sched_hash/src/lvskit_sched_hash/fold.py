"""The kernel's multiplicative hash of an address, which sh and dh share.

Source: Linux include/linux/hash.h (hash_32) and net/netfilter/ipvs/ip_vs_sh.c, ip_vs_dh.c,
ip_vs_mh.c (the folding of IPv6 addresses), by behaviour.
"""

from __future__ import annotations

from typing import Final

MASK: Final = 0xFFFFFFFF
_GOLDEN_RATIO: Final = 0x61C88647


def fold(address: bytes) -> int:
    """Return an IPv4 address as a number, an IPv6 one as the XOR of its four 32-bit words.

    >>> hex(fold(bytes([192, 0, 2, 1])))
    '0xc0000201'
    >>> hex(fold(bytes.fromhex("20010db8" + "00000001" * 3)))
    '0x20010db9'
    """
    value = int.from_bytes(address, "big")
    if len(address) == 16:
        value ^= value >> 64
        value ^= value >> 32
    return value & MASK


def bucket(value: int) -> int:
    """Return which of 256 buckets a number belongs to, by the upper bits of its product.

    >>> bucket(fold(bytes([192, 0, 2, 1])))
    50
    """
    return (value * _GOLDEN_RATIO & MASK) >> 24
