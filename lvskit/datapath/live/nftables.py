"""Messages to nftables: tables, chains, sets and the few expressions that the rules need.

Source: Linux include/uapi/linux/netfilter/nf_tables.h; net/netfilter/nf_tables_api.c for what is
required of each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from lvskit.datapath.live.netlink import ACK, CREATE, Message, attribute, be16, be32, nested, text

_SUBSYSTEM: Final = 10
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
INET: Final = 1  # the family of tables that see IPv4 and IPv6

_NEW_TABLE: Final = _SUBSYSTEM << 8 | 0
_GET_TABLE: Final = _SUBSYSTEM << 8 | 1
DELETE_TABLE: Final = _SUBSYSTEM << 8 | 2
_NEW_CHAIN: Final = _SUBSYSTEM << 8 | 3
_NEW_RULE: Final = _SUBSYSTEM << 8 | 6
_DELETE_RULE: Final = _SUBSYSTEM << 8 | 8
_NEW_SET: Final = _SUBSYSTEM << 8 | 9
_NEW_ELEMENT: Final = _SUBSYSTEM << 8 | 12
_DELETE_ELEMENT: Final = _SUBSYSTEM << 8 | 14
MONITOR: Final = 7
"""The multicast group that hears of every change."""

# Registers of 4 bytes, so that what is loaded side by side is one key.
FIRST_REGISTER: Final = 8

# Keys of the `meta` expression.
MARK: Final = 3
SKUID: Final = 10
NFPROTO: Final = 15
L4PROTO: Final = 16

# Bases of the `payload` expression.
NETWORK: Final = 1
TRANSPORT: Final = 2

PREROUTING: Final = 0
INPUT: Final = 1
FORWARD: Final = 2
OUTPUT: Final = 3

_JUMP: Final = -3
_PRESENT: Final = 1  # NFT_EXTHDR_F_PRESENT
_SOME: Final = 500  # elements to one message: an attribute holds 64 KiB at most


def _message(kind: int, flags: int, family: int, resource: int, body: bytes) -> Message:
    head = bytes((family, 0)) + resource.to_bytes(2, "big")
    return Message(kind, flags | ACK, 0, head + body)


def batch(messages: Iterable[Message]) -> list[Message]:
    """Return `messages` as one transaction: all of them happen, or none."""
    begin = _message(_BATCH_BEGIN, 0, 0, _SUBSYSTEM, b"")._replace(flags=0)
    end = _message(_BATCH_END, 0, 0, _SUBSYSTEM, b"")._replace(flags=0)
    return [begin, *messages, end]


def new_table(table: str) -> Message:
    """Make `table`, or find it there."""
    return _message(_NEW_TABLE, CREATE, INET, 0, text(1, table))


def get_table(table: str) -> Message:
    """Ask for `table`; for itself, not in a transaction."""
    return _message(_GET_TABLE, 0, INET, 0, text(1, table))


def delete_table(table: str) -> Message:
    """Delete `table` and all that is in it."""
    return _message(DELETE_TABLE, 0, INET, 0, text(1, table))


def new_chain(table: str, chain: str, hook: int | None = None, priority: int = 0) -> Message:
    """Make a chain: at a hook, accepting what its rules do not decide, or at none."""
    body = text(1, table) + text(3, chain)
    if hook is not None:
        body += nested(4, be32(1, hook), be32(2, priority)) + be32(5, 1) + text(7, "filter")
    return _message(_NEW_CHAIN, CREATE, INET, 0, body)


def new_set(table: str, name: str, number: int, key_type: int, key_size: int) -> Message:
    """Make a hash set of keys of `key_size` bytes; `key_type` is for the eyes of ``nft list``."""
    body = text(1, table) + text(2, name) + be32(3, 0) + be32(4, key_type)
    return _message(_NEW_SET, CREATE, INET, 0, body + be32(5, key_size) + be32(10, number))


def elements(
    table: str, name: str, keys: Iterable[bytes], *, delete: bool = False
) -> list[Message]:
    """Add keys to a set, or take them out."""
    wanted = list(keys)
    kind, flags = (_DELETE_ELEMENT, 0) if delete else (_NEW_ELEMENT, CREATE)
    return [
        _message(
            kind, flags, INET, 0,
            text(1, table) + text(2, name)
            + nested(3, *(nested(1, nested(1, attribute(1, k))) for k in wanted[at : at + _SOME])),
        )
        for at in range(0, len(wanted), _SOME)
    ]  # fmt: skip


def new_rule(table: str, chain: str, *expressions: bytes) -> Message:
    """Append a rule to a chain."""
    body = text(1, table) + text(2, chain) + nested(4, *expressions)
    return _message(_NEW_RULE, CREATE | 0x800, INET, 0, body)


def delete_rules(table: str, chain: str) -> Message:
    """Empty a chain."""
    return _message(_DELETE_RULE, 0, INET, 0, text(1, table) + text(2, chain))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *attributes))


def meta(key: int, register: int = 0) -> bytes:
    """Load a fact about the packet into a register, counted from the first."""
    return _expression("meta", be32(1, FIRST_REGISTER + register), be32(2, key))


def payload(base: int, offset: int, size: int, register: int = 0) -> bytes:
    """Load bytes of the packet."""
    return _expression(
        "payload", be32(1, FIRST_REGISTER + register), be32(2, base), be32(3, offset), be32(4, size)
    )


def has_header(kind: int) -> bytes:
    """Load whether an IPv6 packet has an extension header, as one byte."""
    return _expression(
        "exthdr", be32(1, FIRST_REGISTER), attribute(2, bytes((kind,))),
        be32(3, 0), be32(4, 1), be32(5, _PRESENT),
    )  # fmt: skip


def equals(value: bytes, *, mask: bytes = b"", negated: bool = False) -> bytes:
    """Go on only where the first register, or its bits in `mask`, hold `value`, or do not."""
    masked = b""
    if mask:
        own = (be32(1, FIRST_REGISTER), be32(2, FIRST_REGISTER), be32(3, len(mask)))
        nothing = nested(5, attribute(1, bytes(len(mask))))
        masked = _expression("bitwise", *own, nested(4, attribute(1, mask)), nothing)
    value = nested(3, attribute(1, value))
    return masked + _expression("cmp", be32(1, FIRST_REGISTER), be32(2, int(negated)), value)


def member(name: str, number: int) -> bytes:
    """Go on only where the registers hold a key of a set made in the same transaction."""
    return _expression("lookup", text(1, name), be32(2, FIRST_REGISTER), be32(4, number))


def queue(number: int, *, bypass: bool) -> bytes:
    """Hand the packet to a program; where none listens, drop it or, with `bypass`, go on."""
    return _expression("queue", be16(1, number), be16(2, 1), be16(3, int(bypass)))


def queue_target(number: int, *, bypass: bool) -> bytes:
    """Do the same by the target of iptables, for kernels without `queue` (CONFIG_NFT_QUEUE)."""
    # struct xt_NFQ_info_v3, padded to 8 bytes.
    info = struct.pack("=HHHH", number, 1, int(bypass), 0)
    return _expression("target", text(1, "NFQUEUE"), be32(2, 3), attribute(3, info))


def log(group: int, size: int) -> bytes:
    """Copy the packet's first `size` bytes to a program, at once."""
    return _expression("log", be16(1, group), be32(3, size), be16(4, 1))


def accept() -> bytes:
    """End the chain."""
    return _expression("immediate", be32(1, 0), nested(2, nested(2, be32(1, 1))))


def jump(chain: str) -> bytes:
    """Go through another chain, which is at no hook."""
    verdict = nested(2, be32(1, _JUMP), text(2, chain))
    return _expression("immediate", be32(1, 0), nested(2, verdict))


def tproxy() -> bytes:
    """Redirect to a local port: never reached, but it makes the kernel reassemble IPv6."""
    port = _expression("immediate", be32(1, FIRST_REGISTER), nested(2, attribute(1, b"\0\x01")))
    return port + _expression("tproxy", be32(1, 0), be32(3, FIRST_REGISTER))
