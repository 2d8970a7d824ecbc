"""The order of listings: ipvsadm's, which is no order.

It subtracts 32-bit numbers and looks at the sign, so 10.0.0.1 comes after 192.168.1.1 and before
127.0.0.1, which in turn comes before 192.168.1.1. What a sort makes of such a ring depends on the
sort and of the order before it. glibc's is a merge sort that halves, so this is one too; and what
it is given is what the kernel tells: services in the order of its hash table, whose random seed
is 0 here, and servers newest first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeVar

from lvskit.config.ipvsadm.labels import signed
from lvskit.config.model import Server, Service, parse_endpoint
from lvskit.settings import ServiceKey

T = TypeVar("T")


def merge_sort(items: list[T], compare: Callable[[T, T], int]) -> list[T]:
    """Return `items` sorted as glibc's qsort does; O(n log n) comparisons."""
    if len(items) < 2:
        return items
    middle = len(items) // 2
    left, right = merge_sort(items[:middle], compare), merge_sort(items[middle:], compare)
    merged = []
    i = j = 0
    while i < len(left) and j < len(right):
        if compare(left[i], right[j]) <= 0:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]


def sorted_by_key(items: list[T], key: Callable[[T], ServiceKey]) -> list[T]:
    """Return services in the order of listings: by mark, family, protocol, address, port.

    Args:
        items: services, oldest first.
        key: returns what names one.
    """
    keyed = [(key(item), item) for item in reversed(items)]
    keyed.sort(key=lambda pair: (pair[0].fwmark != 0, _bucket(pair[0])))
    return [item for _, item in merge_sort(keyed, lambda a, b: _compare_services(a[0], b[0]))]


def sorted_by_address(items: list[T], config: Callable[[T], Server], service: Service) -> list[T]:
    """Return the servers of `service` in the order of listings: by address, then port."""
    keyed = [(parse_endpoint(config(item).address, service.protocol), item) for item in items]
    return [item for _, item in merge_sort(keyed, lambda a, b: _compare_servers(a[0], b[0]))]


def _bucket(key: ServiceKey) -> int:
    """Return a service's place in the kernel's table (ip_vs_svc_hashkey, ip_vs_svc_fwm_hashkey)."""
    if key.fwmark:
        return key.fwmark & 0xFF
    folded = key.protocol ^ key.port >> 8 ^ key.port
    for word in _words(key.address):
        folded ^= word
    return folded & 0xFF


def _compare_services(one: ServiceKey, other: ServiceKey) -> int:
    return (
        signed(one.fwmark - other.fwmark)
        or one.version - other.version
        or one.protocol - other.protocol
        or _compare_addresses(one.address, other.address)
        or one.port - other.port
    )


def _compare_servers(one: tuple[bytes, int | None], other: tuple[bytes, int | None]) -> int:
    return _compare_addresses(one[0], other[0]) or (one[1] or 0) - (other[1] or 0)


def _compare_addresses(one: bytes, other: bytes) -> int:
    """Compare word by word; where the first is IPv4, only the first word of each."""
    width = len(one) // 4
    words = zip(_words(one), _words(other.ljust(16, b"\0"))[:width], strict=True)
    return next((signed(a - b) for a, b in words if a != b), 0)


def _words(address: bytes) -> tuple[int, ...]:
    return struct.unpack(f"!{len(address) // 4}I", address)
