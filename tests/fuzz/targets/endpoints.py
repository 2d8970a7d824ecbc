"""Addresses, ports and masks as people write them: refused with a reason, or read right."""

from __future__ import annotations

import re

from lvskit import ConfigError
from lvskit.config.ipvsadm import values
from lvskit.config.model import format_netmask, parse_endpoint, parse_netmask, parse_port
from lvskit.config.names import Names
from lvskit.settings import endpoint

_NAMES = Names({})
_PROTOCOLS = ("tcp", "udp")


def check(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for protocol in _PROTOCOLS:
        _check_endpoint(text, protocol)
        found = values.endpoint(text, protocol, _NAMES)
        assert found is None or len(found[0]) in (4, 16)
    for version in (4, 6):
        _check_netmask(text, version)
    assert values.number(text, 0, 100) in (None, *range(101))
    assert values.prefix_length(text) in (None, *range(1, 129))
    mask = values.mask(text, _NAMES)
    assert mask is None or len(mask) == 4
    pair = values.option_pair(text)
    if pair is not None and not re.search(r"\s", text):  # a word of a command line
        again = values.option_pair(values.format_option(*pair))
        assert repr(again) == repr(pair)


def _check_endpoint(text: str, protocol: str) -> None:
    try:
        address, port = parse_endpoint(text, protocol)
    except ConfigError:
        return
    assert len(address) in (4, 16)
    if port is not None:
        assert 0 <= port <= 65535
        assert parse_endpoint(endpoint(address, port), protocol) == (address, port)
        assert parse_port(str(port), protocol) == port


def _check_netmask(text: str, version: int) -> None:
    given: str | int = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else text
    try:
        mask = parse_netmask(given, version)
    except ConfigError:
        return
    assert mask is None or len(mask) == (4 if version == 4 else 16)
    assert parse_netmask(format_netmask(mask), version) == mask
