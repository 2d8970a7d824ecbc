"""SipHash-1-3 of a 32-bit number, cut to 32 bits: the kernel's hsiphash on 64-bit machines.

Python's own `hash()` of bytes is the same function, but its key is the process's and cannot be
chosen, and `hashlib` has no SipHash; so here it is, for messages of four bytes, which are one
block. Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012), and Linux
lib/siphash.c (hsiphash_1u32), by behaviour.
"""

from __future__ import annotations

from typing import Final

_MASK: Final = 0xFFFFFFFFFFFFFFFF
_LENGTH: Final = 4 << 56  # of the message in bytes, in the block's last byte


def hsiphash(value: int, key: tuple[int, int]) -> int:
    """Return the 32-bit hash of a 32-bit number under a key of two 64-bit words.

    >>> hex(hsiphash(0x03020100, (0x0706050403020100, 0x0F0E0D0C0B0A0908)))
    '0x88d38328'
    """
    block = _LENGTH | value
    k0, k1 = key
    v0, v1 = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D
    v2, v3 = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573 ^ block
    for turn in range(4):  # one round for the block, three to finish
        v0 = v0 + v1 & _MASK
        v2 = v2 + v3 & _MASK
        v1 = (v1 << 13 & _MASK | v1 >> 51) ^ v0
        v3 = (v3 << 16 & _MASK | v3 >> 48) ^ v2
        v0 = v0 << 32 & _MASK | v0 >> 32
        v2 = v2 + v1 & _MASK
        v0 = v0 + v3 & _MASK
        v1 = (v1 << 17 & _MASK | v1 >> 47) ^ v2
        v3 = (v3 << 21 & _MASK | v3 >> 43) ^ v0
        v2 = v2 << 32 & _MASK | v2 >> 32
        if turn == 0:
            v0 ^= block
            v2 ^= 0xFF
    return (v0 ^ v1 ^ v2 ^ v3) & 0xFFFFFFFF
