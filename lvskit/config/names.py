"""Names of hosts and ports, and back: what people write, and what listings show without ``-n``."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping

WELL_KNOWN = {
    ("ftp-data", "tcp"): 20,
    ("ftp", "tcp"): 21,
    ("ssh", "tcp"): 22,
    ("telnet", "tcp"): 23,
    ("smtp", "tcp"): 25,
    ("domain", "tcp"): 53,
    ("domain", "udp"): 53,
    ("tftp", "udp"): 69,
    ("http", "tcp"): 80,
    ("pop3", "tcp"): 110,
    ("ntp", "udp"): 123,
    ("imap2", "tcp"): 143,
    ("snmp", "tcp"): 161,
    ("snmp", "udp"): 161,
    ("ldap", "tcp"): 389,
    ("ldap", "udp"): 389,
    ("https", "tcp"): 443,
    ("https", "udp"): 443,
    ("submission", "tcp"): 587,
    ("imaps", "tcp"): 993,
    ("pop3s", "tcp"): 995,
    ("mysql", "tcp"): 3306,
    ("sip", "tcp"): 5060,
    ("sip", "udp"): 5060,
    ("mdns", "udp"): 5353,
    ("postgresql", "tcp"): 5432,
    ("http-alt", "tcp"): 8080,
    ("http-alt", "udp"): 8080,
}
"""Ports for hosts without a services database (containers, mostly), by the names Debian has."""

_PORT_NAMES = {(port, protocol): name for (name, protocol), port in WELL_KNOWN.items()}


def port_of(name: str, protocol: str) -> int | None:
    """Return the port of the service `name` of `protocol` (tcp, udp), or None."""
    try:
        return socket.getservbyname(name, protocol)
    except (OSError, ValueError):
        return None if _has_database() else WELL_KNOWN.get((name, protocol))


def port_name(port: int, protocol: str) -> str | None:
    """Return the name of `port` of `protocol`, or None."""
    try:
        return socket.getservbyport(port, protocol)
    except OSError:
        return None if _has_database() else _PORT_NAMES.get((port, protocol))


def _has_database() -> bool:
    try:
        return bool(socket.getservbyname("http", "tcp"))
    except OSError:
        return False


class Names:
    """Finds names and addresses; remembers what it found, since a listing repeats itself.

    Args:
        hosts: by address, names as a line of ``/etc/hosts`` has them (the canonical one, then
            aliases); None = ask the system's resolver.
    """

    def __init__(self, hosts: Mapping[str, str] | None = None) -> None:
        self._hosts = hosts
        self._found: dict[bytes, str | None] = {}

    def host_name(self, address: bytes) -> str | None:
        """Return the canonical name of a packed address, or None."""
        if address not in self._found:
            self._found[address] = self._look_up(address)
        return self._found[address]

    def _look_up(self, address: bytes) -> str | None:
        text = str(ipaddress.ip_address(address))
        if self._hosts is not None:
            names = self._hosts.get(text, "").split()
            return names[0] if names else None
        try:
            return socket.gethostbyaddr(text)[0]
        except OSError:
            return None

    def host_address(self, name: str) -> bytes | None:
        """Return the packed IPv4 address of a host name, or None: ipvsadm resolves no others."""
        if self._hosts is not None:
            for address, names in self._hosts.items():
                if name.lower() in names.lower().split() and ":" not in address:
                    return socket.inet_aton(address)
            return None
        try:  # Python would take an empty name for 0.0.0.0
            return socket.inet_aton(socket.gethostbyname(name)) if name else None
        except (OSError, UnicodeError):
            return None

    def port_of(self, name: str, protocol: str) -> int | None:
        """Return the port of the service `name` of `protocol` (tcp, udp, sctp), or None."""
        return port_of(name, protocol)

    def port_name(self, port: int, protocol: str) -> str | None:
        """Return the name of `port` of `protocol`, or None."""
        return port_name(port, protocol)
