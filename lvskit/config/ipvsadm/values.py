"""Values of options: numbers, addresses, masks, flags, with ipvsadm's own ideas of them."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

from lvskit.config.names import Names

INT_MAX = 2**31 - 1
FLAGS = {
    "flag-1": "",
    "flag-2": "",
    "flag-3": "",
    "sh-fallback": "sh",
    "sh-port": "sh",
    "mh-fallback": "mh",
    "mh-port": "mh",
}
"""Flags that ipvsadm knows, and the one scheduler that takes each (any, where it is empty)."""

OWN_FLAGS = frozenset({"sh", "mh"})
"""Schedulers whose flags ipvsadm knows by name, so that there are no others."""

_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]+)")  # what strtol takes
_MOST_DIGITS = 19  # more are beyond every range, and beyond a few thousand int() refuses


def number(text: str, low: int, high: int) -> int | None:
    """Return the decimal number that `text` is, as strtol reads it, if it is in range."""
    value = _value(_NUMBER.fullmatch(text))
    return value if value is not None and low <= value <= high else None


def prefix_length(text: str) -> int | None:
    """Return an IPv6 prefix length; whatever follows its digits is ignored, as atoi does."""
    value = _value(_NUMBER.match(text))
    return value if value is not None and 1 <= value <= 128 else None


def _value(match: re.Match[str] | None) -> int | None:
    return int(match[1] + match[2]) if match and len(match[2]) <= _MOST_DIGITS else None


def mask(text: str, names: Names) -> bytes | None:
    """Return an IPv4 mask: any address in the notations of inet_aton, or a host's."""
    return ipv4(text) or names.host_address(text)


def ipv4(text: str) -> bytes | None:
    """Return the packed address that inet_aton takes `text` for (192.168.1 = 192.168.0.1)."""
    try:
        return socket.inet_aton(text)
    except (OSError, ValueError):
        return None


def ipv6(text: str) -> bytes | None:
    """Return the packed IPv6 address that `text` is."""
    try:
        return socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return None


def endpoint(text: str, protocol: str, names: Names) -> tuple[bytes, int | None] | None:
    """Return address and port (None where there is none) of `host[:port]`; None if it is neither.

    IPv6 is written `[address]:port`, or bare without a port; brackets without a port are refused.
    A host of nothing but digits is refused, though inet_aton would take it.
    """
    port_text: str | None = None
    if re.fullmatch("[0-9]*", text):
        return None
    bracketed = text.startswith("[")
    if bracketed:
        text, bracket, port_text = text[1:].partition("]")
        if not bracket or not port_text.startswith(":"):
            return None
        port_text = port_text[1:]
    address = ipv6(text)
    if address is None:
        if bracketed:
            port_text = None  # ipvsadm loses the port of anything but IPv6 in brackets
        elif ":" in text:
            text, _, port_text = text.rpartition(":")
        address = ipv4(text) or names.host_address(text)
    if address is None:
        return None
    if port_text is None:
        return address, None
    port = number(port_text, 0, 65535)
    if port is None and protocol:
        port = names.port_of(port_text, protocol)
    return None if port is None else (address, port)


def option_pair(text: str) -> tuple[str, Any] | None:
    """Return name and value of `name=value`; the value is JSON, or else text as it stands."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        return None
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def format_option(name: str, value: Any) -> str:
    """Return `name=value` such that `option_pair` gives it back, as one word without blanks."""
    if isinstance(value, str) and re.fullmatch(r"[!-~]+", value):
        try:
            json.loads(value)
        except (ValueError, RecursionError):
            return f"{name}={value}"
    # Blanks are left in strings only, where JSON has another way to write them.
    return f"{name}={json.dumps(value, separators=(',', ':'))}".replace(" ", "\\u0020")
