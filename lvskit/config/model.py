"""The typed model of a director's configuration; also the vocabulary of the control socket.

Addresses are text here (`192.168.1.176:23`, `[2001:db8::1]:80`), names of ports are allowed where
people write (`:telnet`); `lvskit.core` gets packed bytes. Every error names the path of the value
at fault, as msgspec does: ``$.service[0].server[1].weight``.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from lvskit.config.names import port_of
from lvskit.errors import ConfigError
from lvskit.settings import ServerSettings, ServiceKey, ServiceSettings, endpoint
from lvskit.types import SCTP, TCP, UDP

DEFAULT_PERSISTENCE_S = 360
_PROTOCOLS = {"tcp": TCP, "udp": UDP, "sctp": SCTP}
_NAMES = {number: name for name, number in _PROTOCOLS.items()}


class Server(
    msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A real server.

    Attributes:
        address: `host` or `host:port`; without a port, the service's.
        weight: share of new connections; 0 = quiesced.
        method: forwarding method, by name.
        upper_threshold, lower_threshold: connections at which it stops and starts taking more;
            0 = no limit.
        options: for the forwarding method.
    """

    address: str
    weight: int = 1
    method: str = "tunnel"
    upper_threshold: int = 0
    lower_threshold: int = 0
    options: dict[str, Any] = {}

    def settings(self) -> ServerSettings:
        """Return these settings as the core takes them."""
        return ServerSettings(
            weight=self.weight,
            method=self.method,
            options=self.options,
            upper=self.upper_threshold,
            lower=self.lower_threshold,
        )


class Service(
    msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A virtual service: exactly one of `tcp`, `udp`, `sctp` and `fwmark` names it.

    Attributes:
        tcp, udp, sctp: `host:port`; port 0 = every port (needs `persistent`).
        fwmark: the firewall mark of its packets; with `ipv6`, of IPv6 packets.
        scheduler: by name.
        flags: the scheduler's flags, as ``-b`` takes them.
        options: for the scheduler.
        persistent: seconds that a client keeps its server; 0 = not.
        netmask: granularity of persistence: an IPv4 mask, or a prefix length.
        one_packet: schedule every datagram for itself (UDP).
        settings: the settings that it has for itself, by the kernel's names.
        server: its real servers, in the order of addition.
    """

    tcp: str | None = None
    udp: str | None = None
    sctp: str | None = None
    fwmark: int | None = None
    ipv6: bool = False
    scheduler: str = "wlc"
    flags: list[str] = []
    options: dict[str, Any] = {}
    persistent: int = 0
    netmask: str | int | None = None
    one_packet: bool = False
    # Values are judged by `check_settings`: msgspec's complaint would not name the setting.
    settings: dict[str, Any] = {}
    server: list[Server] = []

    @property
    def named(self) -> list[str]:
        """Those of the fields that name a service which are given."""
        return [name for name in (*_PROTOCOLS, "fwmark") if getattr(self, name) is not None]

    @property
    def protocol(self) -> str:
        """The protocol whose names its ports may have; a mark's are TCP's."""
        return next((name for name in self.named if name in _PROTOCOLS), "tcp")

    def key(self) -> ServiceKey:
        """Return the core's key; `ConfigError` where the names do not make one."""
        named = self.named
        if len(named) != 1:
            given = ", ".join(named) or "none"
            raise ConfigError(
                f"a service needs exactly one of {', '.join(_PROTOCOLS)} and fwmark; given: {given}"
            )
        if self.fwmark is not None:
            return ServiceKey.mark(self.fwmark, 6 if self.ipv6 else 4)
        protocol = named[0]
        address, port = parse_endpoint(getattr(self, protocol), protocol)
        if port is None:
            raise ConfigError(f"{getattr(self, protocol)!r} names no port; write host:port")
        return ServiceKey.of(_PROTOCOLS[protocol], address, port)


class Timeouts(
    msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Seconds that an idle connection is kept (``--set``); 0 keeps the present value.

    The same as the director's settings timeout_established, timeout_finwait and timeout_udp;
    None = they are not given, or given there.
    """

    tcp: int | None = None
    tcp_fin: int | None = None
    udp: int | None = None


class DirectorConfig(
    msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The daemon itself.

    Attributes:
        size: the most connections and templates that it keeps.
        datapath: by name.
        datapath_options: for the datapath.
        socket: path of the control socket; default: $LVSKIT_SOCKET, else below /run or
            $XDG_RUNTIME_DIR; empty = none (for programs that embed a director).
        group: members of this group may use the socket too.
        state: file that keeps the connections while the daemon restarts; empty = none; default:
            beside the socket and of its name, with .state (with the datapath memory, none).
    """

    size: int = 65536
    datapath: str = "live"
    datapath_options: dict[str, Any] = {}
    socket: str | None = None
    group: str | None = None
    state: str | None = None


class Config(
    msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Everything that a configuration file says.

    Attributes:
        director: the daemon itself.
        timeouts: three of the director's settings, in short.
        settings: the director's settings by the kernel's names, for all services that have no
            value of their own.
        service: the virtual services.
    """

    director: DirectorConfig = DirectorConfig()
    timeouts: Timeouts = Timeouts()
    settings: dict[str, Any] = {}
    service: list[Service] = []


# --- text and bytes ---


def parse_endpoint(text: str, protocol: str) -> tuple[bytes, int | None]:
    """Return the packed address and the port (None where there is none) of `host[:port]`.

    Raises:
        ConfigError: it is no numeric address, or the port is neither a number nor a known name.
    """
    host, separator, port = text.rpartition(":")
    if text.endswith("]") or not separator or (host.count(":") and not host.startswith("[")):
        host, port = text, ""
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).packed
    except ValueError:
        raise ConfigError(
            f"{text!r} is no address; allowed: 192.0.2.1:80, [2001:db8::1]:80, port optional for "
            "a real server"
        ) from None
    return address, parse_port(port, protocol) if port else None


def parse_port(text: str, protocol: str) -> int:
    """Return the port that `text` is or names; `ConfigError` where it does neither."""
    if text.isascii() and text.isdigit():
        digits = text.lstrip("0") or "0"
        # int() refuses thousands of digits.
        port = int(digits) if len(digits) <= 5 and int(digits) <= 65535 else None
    else:
        port = port_of(text, protocol)
    if port is None:
        raise ConfigError(
            f"port {text!r}: neither 0 to 65535 nor a {protocol} service of this host"
        )
    return port


def parse_netmask(netmask: str | int | None, version: int) -> bytes | None:
    """Return the packed mask for a mask or a prefix length; None for none or a full one."""
    if netmask is None:
        return None
    bits = 32 if version == 4 else 128
    if isinstance(netmask, int):
        if not 1 <= netmask <= bits:
            raise ConfigError(f"netmask {netmask}; allowed: a prefix length of 1 to {bits}")
        mask = ((1 << bits) - (1 << bits - netmask)).to_bytes(bits // 8, "big")
    elif version == 4:
        try:
            mask = ipaddress.IPv4Address(netmask).packed
        except ValueError:
            raise ConfigError(
                f"netmask {netmask!r}; allowed: a mask like 255.255.255.0, or a prefix length"
            ) from None
    else:
        raise ConfigError(f"netmask {netmask!r}; allowed for IPv6: a prefix length of 1 to 128")
    return None if mask == b"\xff" * (bits // 8) else mask


def format_netmask(mask: bytes | None) -> str | int | None:
    """Return a packed mask as the model has it: dotted for IPv4, a prefix length for IPv6."""
    if mask is None:
        return None
    if len(mask) == 4:
        return str(ipaddress.IPv4Address(mask))
    return int.from_bytes(mask, "big").bit_count()


def name_service(key: ServiceKey) -> dict[str, Any]:
    """Return the fields of `Service` that name `key`."""
    if key.fwmark:
        return {"fwmark": key.fwmark, "ipv6": key.version == 6}
    return {_NAMES[key.protocol]: endpoint(key.address, key.port)}


def service_of(
    key: ServiceKey, settings: ServiceSettings, flags: list[str], overrides: dict[str, int]
) -> Service:
    """Return the model of a service (without servers) as the core has it."""
    return Service(
        **name_service(key),
        scheduler=settings.scheduler,
        flags=flags,
        options=dict(settings.options),
        persistent=settings.persistence_s,
        netmask=format_netmask(settings.netmask),
        one_packet=settings.one_packet,
        settings=overrides,
    )


def server_of(address: bytes, port: int, settings: ServerSettings) -> Server:
    """Return the model of a server as the core has it."""
    return Server(
        address=endpoint(address, port),
        weight=settings.weight,
        method=settings.method,
        upper_threshold=settings.upper,
        lower_threshold=settings.lower,
        options=dict(settings.options),
    )
