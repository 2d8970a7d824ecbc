"""What ``-L`` prints: services and servers in five views, and the connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lvskit.config.ipvsadm import tunnels
from lvskit.config.ipvsadm.labels import PROTOCOLS, Labels, signed
from lvskit.config.ipvsadm.rules import known_flags
from lvskit.config.model import Server, Service, parse_endpoint
from lvskit.config.status import ServerStatus, ServiceStatus, Stats
from lvskit.settings import ServiceKey
from lvskit.types import PROTOCOL_NAMES

METHODS = {"masq": "Masq", "local": "Local", "tunnel": "Tunnel", "droute": "Route"}
_NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()}
_SERVERS = "  -> RemoteAddress:Port"
_FIGURES = "{:<33} {:>8} {:>8} {:>8} {:>8} {:>8}"
_LABEL = "Prot LocalAddress:Port"
TITLES = {
    "stats": [_FIGURES.format(_LABEL, "Conns", "InPkts", "OutPkts", "InBytes", "OutBytes")],
    "rate": [_FIGURES.format(_LABEL, "CPS", "InPPS", "OutPPS", "InBPS", "OutBPS")],
    "thresholds": [f"{_LABEL:<33} Uthreshold Lthreshold ActiveConn InActConn "],
    "persistent-conn": [f"{_LABEL:<33} Weight    PersistConn ActiveConn InActConn "],
    "tun-info": [f"{_LABEL} Scheduler Flags"],
    "": [f"{_LABEL} Scheduler Flags"],
}
"""The first title line of each view; the second differs in two of them only."""
_SERVER_TITLES = {
    "tun-info": f"{_SERVERS}           Forward TunnelInfo    Weight ActiveConn InActConn",
    "": f"{_SERVERS}           Forward Weight ActiveConn InActConn",
}
VIEWS = tuple(TITLES)
"""Views by the option that asks for them; where several do, the first of these is shown."""


class Listing:
    """Prints services.

    Args:
        labels: how addresses are written.
        given: the options of the command.
    """

    def __init__(self, labels: Labels, given: set[str]) -> None:
        self._labels = labels
        self._view = next(view for view in VIEWS if view in given or not view)
        self._number = exact_number if "exact" in given else short_number

    def titles(self) -> list[str]:
        """Return the two lines above the services."""
        return [*TITLES[self._view], _SERVER_TITLES.get(self._view, _SERVERS)]

    def lines(self, service: ServiceStatus, servers: list[ServerStatus]) -> Iterator[str]:
        """Yield a service's line and those of `servers`, in that order."""
        key = service.config.key()
        label = self._service_label(key)
        figures = self._figures(service)
        yield f"{label:<33}{figures}" if figures else f"{label} {describe(service.config)}"
        for server in servers:
            yield f"  -> {self._server_label(server.config, key):<28}{self._server_columns(server)}"

    def _service_label(self, key: ServiceKey) -> str:
        if key.fwmark:
            return f"FWM  {signed(key.fwmark)}" + (" IPv6" if key.version == 6 else "")
        label = f"{PROTOCOL_NAMES[key.protocol]:<5}{self._labels.service(key)}"
        return label if key.version == 6 else label[:33]

    def _server_label(self, server: Server, key: ServiceKey) -> str:
        address, port = parse_endpoint(server.address, PROTOCOLS.get(key.protocol, "tcp"))
        label = self._labels.endpoint(address, port or 0, key.protocol)
        return label if len(address) == 16 else label[:28]

    def _figures(self, counted: ServiceStatus | ServerStatus) -> str:
        if self._view not in ("stats", "rate"):
            return ""
        return figures(counted.stats if self._view == "stats" else counted.rates, self._number)

    def _server_columns(self, server: ServerStatus) -> str:
        config = server.config
        conns = f"{server.active:<10} {server.inactive:<10}"
        if self._view == "thresholds":
            return f" {config.upper_threshold:<10} {config.lower_threshold:<10} {conns}"
        if self._view == "persistent-conn":
            return f" {config.weight:<9} {server.persistent:<11} {conns}"
        if self._view in ("stats", "rate"):
            return self._figures(server)
        method = f"{METHODS.get(config.method, config.method.capitalize()):<7}"
        if self._view == "tun-info":
            kind = tunnels.summary(config.options) if config.method == "tunnel" else "n/a"
            method += f" {kind:<13}"
        return f" {method} {config.weight:<6} {conns}"


def describe(service: Service) -> str:
    """Return scheduler and properties of a service as its line has them."""
    words = [service.scheduler]
    if flags := known_flags(service):
        words.append(f"({','.join(flags)})")
    if service.persistent:
        words.append(f"persistent {service.persistent}")
        if service.netmask is not None:
            words.append(f"mask {service.netmask}")
    if service.one_packet:
        words.append("ops")
    return " ".join(words)


def figures(stats: Stats, number: Callable[[int], str]) -> str:
    """Return the five columns of `stats`."""
    values = (stats.conns, stats.inpkts, stats.outpkts, stats.inbytes, stats.outbytes)
    return "".join(number(value) for value in values)


def exact_number(value: int) -> str:
    """Return a column of ``--exact``."""
    return f" {value:8}"


def short_number(value: int) -> str:
    """Return a column of nine characters: thousands, millions … where it takes more than eight.

    >>> short_number(99999999), short_number(100000000), short_number(1999999999)
    (' 99999999', '  100000K', '    1999M')
    """
    for limit, unit, divisor in (
        (10**8, "", 1),
        (10**9, "K", 10**3),
        (10**11, "M", 10**6),
        (10**14, "G", 10**9),
    ):
        if value < limit:
            return f"{value // divisor:>{9 - len(unit)}}{unit}"
    return f"{value // 10**12:8}T"


def connection_lines(
    connections: list[dict[str, Any]], labels: Labels, *, engines: bool
) -> Iterator[str]:
    """Yield the listing of connections, as the control socket tells them; ``-c``.

    Args:
        connections: as `lvskit.config.status.ConnectionStatus`.
        labels: how addresses are written.
        engines: with the (empty) columns of persistence engines.
    """
    yield "IPVS connection entries"
    title = "pro expire state       source             virtual            destination"
    yield f"{title:<80}pe name          pe_data" if engines else title
    for entry in connections:
        protocol = _NUMBERS.get(entry["protocol"], 0)
        seconds = max(int(entry["expires_s"]), 0)
        client, virtual, server = (
            labels.endpoint(address, port or 0, protocol)
            for address, port in (
                parse_endpoint(entry[field], "tcp") for field in ("client", "virtual", "server")
            )
        )
        yield (
            f"{entry['protocol']:<3} {f'{seconds // 60:02}:{seconds % 60:02}':<6} "
            f"{entry['state']:<11} {client:<18} {virtual:<18} {server}"
        )
