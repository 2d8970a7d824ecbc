"""What operators say: which service, which server, and what holds for them.

Values alone, checked when they are made or used; `lvskit.core` acts on them.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

from lvskit.errors import ConfigError, NotUnicast, OutOfRange
from lvskit.types import PROTOCOL_NAMES, SCTP, TCP, UDP

MAX_WEIGHT: Final = 2**31 - 1
MAX_THRESHOLD: Final = 2**31 - 1
MAX_MARK: Final = 2**32 - 1
MAX_TIMEOUT_S: Final = 31 * 86400
"""The longest timeout, of a connection or of persistence: ipvsadm's own bound."""
_INT: Final = (-(2**31), 2**31 - 1)


@lru_cache(maxsize=4096)
def endpoint(address: bytes, port: int) -> str:
    """Return `address:port` for people.

    >>> endpoint(bytes([10, 0, 0, 1]), 80)
    '10.0.0.1:80'
    """
    text = str(ipaddress.ip_address(address))
    return f"[{text}]:{port}" if len(address) == 16 else f"{text}:{port}"


def check_endpoint(address: bytes, port: int) -> None:
    """Raise `ConfigError` where `address` is no packed one, `OutOfRange` where `port` is none."""
    if len(address) not in (4, 16):
        raise ConfigError(f"address of {len(address)} bytes; allowed: 4 (IPv4), 16 (IPv6)")
    if not 0 <= port <= 65535:
        raise OutOfRange(f"port {port}; allowed: 0 to 65535")


class ServiceKey(NamedTuple):
    """What identifies a virtual service: protocol, address and port, or a firewall mark.

    Attributes:
        protocol: `TCP`, `UDP` or `SCTP`; 0 with a mark.
        address: packed; empty with a mark.
        port: 0 to 65535.
        fwmark: 1 to 2^32-1; 0 = by address.
        version: IP version of its packets, 4 or 6.
    """

    protocol: int = 0
    address: bytes = b""
    port: int = 0
    fwmark: int = 0
    version: int = 4

    @classmethod
    def of(cls, protocol: int, address: bytes, port: int) -> ServiceKey:
        """Return the key of a service by address; `ConfigError` where there can be none."""
        if protocol not in (TCP, UDP, SCTP):
            raise ConfigError(
                f"protocol {protocol} cannot be balanced; allowed: TCP (6), UDP (17), SCTP (132)"
            )
        check_endpoint(address, port)
        return cls(protocol, address, port, 0, 4 if len(address) == 4 else 6)

    @classmethod
    def mark(cls, fwmark: int, version: int = 4) -> ServiceKey:
        """Return the key of a service by firewall mark; `ConfigError` where there can be none."""
        if not 1 <= fwmark <= MAX_MARK:
            raise OutOfRange(f"fwmark {fwmark}; allowed: 1 to {MAX_MARK}")
        return cls(fwmark=fwmark, version=version)

    def __str__(self) -> str:
        if self.fwmark:
            return f"FWM {self.fwmark}" + (" IPv6" if self.version == 6 else "")
        return f"{PROTOCOL_NAMES[self.protocol]} {endpoint(self.address, self.port)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What a virtual service can be told, and edited to.

    Attributes:
        scheduler: name of the scheduler.
        options: for the scheduler, by name.
        flags: numbers, 1 to 3, of the scheduler's flags that are on; as in the kernel, every
            scheduler has three, and what they mean is its own affair (`SchedulerSpec.flags`).
        persistence_s: seconds that a template lasts; 0 = not persistent.
        netmask: granularity of persistence, a packed mask; None = the whole address.
        one_packet: every UDP datagram is scheduled for itself.
    """

    scheduler: str = "wlc"
    options: Mapping[str, Any] = field(default_factory=dict)
    flags: frozenset[int] = frozenset()
    persistence_s: int = 0
    netmask: bytes | None = None
    one_packet: bool = False

    def check(self, key: ServiceKey) -> None:
        """Raise `ConfigError` for what the service of `key` cannot have."""
        if self.persistence_s < 0:
            raise ConfigError(
                f"persistence of {self.persistence_s} s for {key}; allowed: 0 or more"
            )
        if key.port == 0 and not key.fwmark and not self.persistence_s:
            raise ConfigError(f"{key}: port 0 (every port) needs persistence (-p)")
        size = 4 if key.version == 4 else 16
        if self.netmask is not None and len(self.netmask) != size:
            raise ConfigError(f"netmask of {key}: {len(self.netmask)} bytes; allowed: {size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What a real server can be told, and edited to.

    Attributes:
        weight: 0 to 2^31-1; 0 = quiesced.
        method: name of the forwarding method.
        options: for the forwarder, by name.
        upper: connections at which it takes no more; 0 = no limit.
        lower: connections below which it takes some again; 0 = three quarters of `upper`.
    """

    weight: int = 1
    method: str = "tunnel"
    options: Mapping[str, Any] = field(default_factory=dict)
    upper: int = 0
    lower: int = 0

    def check(self, server: str) -> None:
        """Raise `OutOfRange` for a value outside its range."""
        if not 0 <= self.weight <= MAX_WEIGHT:
            raise OutOfRange(f"weight {self.weight} of {server}; allowed: 0 to {MAX_WEIGHT}")
        if not 0 <= self.upper <= MAX_THRESHOLD:
            raise OutOfRange(
                f"upper threshold {self.upper} of {server}; allowed: 0 to {MAX_THRESHOLD}"
            )
        if not 0 <= self.lower <= self.upper:
            raise OutOfRange(
                f"lower threshold {self.lower} of {server}; allowed: 0 to its upper threshold, "
                f"{self.upper}"
            )


def check_address(address: bytes) -> None:
    """Raise `NotUnicast` where `address` can be no real server's, as the kernel judges it."""
    value = ipaddress.ip_address(address)
    refused = value.is_unspecified or value.is_multicast or address == b"\xff" * 4
    if isinstance(value, ipaddress.IPv6Address):
        refused = refused or value.is_link_local or value.ipv4_mapped is not None
    if refused:
        raise NotUnicast(f"{value} is not unicast, so it cannot be a real server")


MODES: Final = frozenset({"drop_entry", "drop_packet", "secure_tcp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The values of every setting; whole numbers, 0 = off, any other number = on.

    As in the kernel, all but defences and timeouts may be any number of 32 bits.

    Attributes:
        am_droprate: `drop_packet` 3 drops one new connection's packet in this many.
        amemthresh: free entries of the table below which defences set to 1 start.
        cache_bypass: with no server, send packets of fwmark services on to their destination.
        conn_reuse_mode: a SYN reuses the ports of an ended connection: 0 = with its server,
            bit 1 = as a new connection, bit 2 = also after a FIN.
        drop_entry, drop_packet, secure_tcp: defences; 0 = off, 1 and 2 = while the table is
            nearly full, 3 = on.
        expire_nodest_conn: end the connections of a removed server at once.
        expire_quiescent_template: a template does not bring clients to a quiesced server.
        pmtu_disc: tell clients the MTU of tunnels; 0 = fragment the tunnel's packets.
        schedule_icmp: an ICMP error about no known connection opens one.
        sloppy_tcp, sloppy_sctp: any packet opens a connection, not only the first of a handshake.
        timeout_*: seconds that an idle connection is kept, by state.
    """

    am_droprate: int = 10
    amemthresh: int = 1024
    cache_bypass: int = 0
    conn_reuse_mode: int = 1
    drop_entry: int = 0
    drop_packet: int = 0
    expire_nodest_conn: int = 0
    expire_quiescent_template: int = 0
    pmtu_disc: int = 1
    schedule_icmp: int = 0
    secure_tcp: int = 0
    sloppy_sctp: int = 0
    sloppy_tcp: int = 0
    timeout_none: int = 2
    timeout_established: int = 900
    timeout_synsent: int = 120
    timeout_synrecv: int = 60
    timeout_finwait: int = 120
    timeout_timewait: int = 120
    timeout_close: int = 10
    timeout_closewait: int = 60
    timeout_lastack: int = 30
    timeout_listen: int = 120
    timeout_synack: int = 120
    timeout_udp: int = 300
    timeout_sctp_none: int = 2
    timeout_sctp_init1: int = 4
    timeout_sctp_init: int = 61
    timeout_sctp_cookie_sent: int = 61
    timeout_sctp_cookie_replied: int = 61
    timeout_sctp_cookie_wait: int = 61
    timeout_sctp_cookie: int = 61
    timeout_sctp_cookie_echoed: int = 61
    timeout_sctp_established: int = 900
    timeout_sctp_shutdown_sent: int = 61
    timeout_sctp_shutdown_received: int = 61
    timeout_sctp_shutdown_ack_sent: int = 61
    timeout_sctp_rejected: int = 4
    timeout_sctp_closed: int = 61


NAMES: Final = tuple(field.name for field in dataclasses.fields(Settings))
"""Every setting, in the order of `Settings`."""


def allowed(name: str) -> tuple[int, int]:
    """Return the least and the greatest value of a setting."""
    if name in MODES:
        return 0, 3
    return (1, MAX_TIMEOUT_S) if name.startswith("timeout_") else _INT


def check_settings(changes: Mapping[str, int | None]) -> None:
    """Raise `ConfigError` for a name that is no setting, or a value that it cannot have.

    Args:
        changes: values by name; None takes a value back, and is always allowed.
    """
    for name, value in changes.items():
        if name not in NAMES:
            raise ConfigError(f"unknown setting {name!r}; allowed: {', '.join(NAMES)}")
        if value is None:
            continue
        low, high = allowed(name)
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(f"setting {name} = {value!r}; allowed: {low} to {high}")


def plain(changes: Mapping[str, int | None]) -> dict[str, int | None]:
    """Return `changes` with 1 for every 2 of a defence.

    The kernel takes either, and shows 2 while such a defence is at work and 1 while it waits.
    """
    return {name: 1 if value == 2 and name in MODES else value for name, value in changes.items()}


def merged(base: Settings, changes: Mapping[str, int]) -> Settings:
    """Return `base` with `changes`."""
    return dataclasses.replace(base, **changes)
