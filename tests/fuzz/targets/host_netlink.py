"""The kernel's answers to host set-up, attributes missing as they may be."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from fuzzkit.source import Bytes, Source

from lvskit.hostsetup.netlink import Link, Netlink

_ADDRESSES = ("192.0.2.1", "198.51.100.7", "2001:db8::1", "fe80::1", "0.0.0.0")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class _Message(dict[str, Any]):
    """As pyroute2's: header fields by name, attributes by `get_attr`."""

    def __init__(self, header: dict[str, int], **attributes: object) -> None:
        super().__init__(header)
        self._attributes = attributes

    def get_attr(self, name: str) -> object:
        return self._attributes.get(name)


class _Kernel:
    """Answers whatever was drawn; an address or route may name a link that has just gone."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _some(self) -> range:
        return range(self._source.number(0, 3))

    def _maybe(self, *values: object) -> object:
        return self._source.pick((*values, None))

    def _address(self, family: int) -> str:
        of_family = [a for a in _ADDRESSES if (":" in a) == (family == socket.AF_INET6)]
        return self._source.pick(of_family)

    def get_links(self) -> list[_Message]:
        pick = self._source.pick
        return [
            _Message(
                {"index": pick((1, 2, 3)), "flags": pick((0, 1, 9, 0xFFFF))},
                IFLA_IFNAME=pick(("lo", "eth0")),
                IFLA_MTU=pick((1500, 65536)),
                IFLA_ADDRESS=self._maybe("02:00:00:00:00:01"),
            )
            for _ in self._some()
        ]

    def get_addr(self, family: int) -> list[_Message]:
        bits = 32 if family == socket.AF_INET else 128
        return [
            _Message(
                {"index": self._source.pick((1, 2, 3)), "prefixlen": self._source.number(0, bits)},
                IFA_ADDRESS=self._address(family),
                IFA_LOCAL=self._maybe(self._address(family)),
                IFA_LABEL=self._maybe("eth0:vip"),
            )
            for _ in self._some()
        ]

    def get_routes(self, family: int, table: int) -> list[_Message]:
        bits = 32 if family == socket.AF_INET else 128
        return [
            _Message(
                {"dst_len": self._source.number(0, bits)},
                RTA_DST=self._maybe(self._address(family)),
                RTA_OIF=self._maybe(1, 2),
            )
            for _ in self._some()
        ]

    def get_rules(self, family: int) -> list[_Message]:
        return [
            _Message(
                {"family": self._source.pick(_FAMILIES)},
                FRA_SRC=self._maybe(self._address(family)),
                FRA_TABLE=self._maybe(254),
                FRA_PRIORITY=self._maybe(100),
            )
            for _ in self._some()
        ]


def check(data: bytes) -> None:
    netlink = Netlink.__new__(Netlink)
    netlink._ipr = _Kernel(Bytes(data))
    for text in _ADDRESSES[:4]:
        address = ipaddress.ip_address(text)
        found = netlink.holder(address)
        assert found is None or isinstance(found[1], Link)
        link = netlink.link_towards(address)
        assert link is None or not link.loopback
    for family in _FAMILIES:
        for _, _, priority in netlink.rules(family):
            assert isinstance(priority, int)
