"""Services and servers to the lines that make them again."""

from __future__ import annotations

from lvskit.config.ipvsadm import tunnels
from lvskit.config.ipvsadm.labels import PROTOCOLS, Labels, signed
from lvskit.config.ipvsadm.values import OWN_FLAGS, format_option
from lvskit.config.model import Server, Service, parse_endpoint
from lvskit.config.settings import format_assignments
from lvskit.settings import ServiceKey

METHODS = {"tunnel": "-i", "droute": "-g", "masq": "-m"}
_OPTIONS = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}


def known_flags(service: Service) -> list[str]:
    """Return the flags that ipvsadm shows: where it knows their names, it hides all others."""
    if service.scheduler not in OWN_FLAGS:
        return service.flags
    return [flag for flag in service.flags if flag.startswith(service.scheduler)]


class Rules:
    """Writes rules.

    Args:
        labels: how addresses are written.
        lossless: keep what ``ipvsadm -S`` loses: thresholds, the masks of services that are not
            persistent, and marks above 2^31 - 1, which it prints as negative numbers that it
            then refuses to read.
    """

    def __init__(self, labels: Labels, *, lossless: bool = False) -> None:
        self._labels = labels
        self._lossless = lossless

    def lines(self, service: Service, servers: list[Server]) -> list[str]:
        """Return the rules of a service, and those of `servers`, in that order."""
        key = service.key()
        name = self._name(key)
        rules = [self._service(service, name, key)]
        if service.settings:
            rules.append(" ".join(["--set", name, *format_assignments(service.settings)]))
        return rules + [self._server(server, name, key) for server in servers]

    def _name(self, key: ServiceKey) -> str:
        if not key.fwmark:
            return f"{_OPTIONS[PROTOCOLS[key.protocol]]} {self._labels.service(key)}"
        mark = key.fwmark if self._lossless else signed(key.fwmark)
        return f"-f {mark} -6" if key.version == 6 else f"-f {mark}"

    def _service(self, service: Service, name: str, key: ServiceKey) -> str:
        words = ["-A", name, "-s", service.scheduler]
        if service.persistent:
            words += ["-p", str(service.persistent)]
        if service.persistent or self._lossless:
            full = "255.255.255.255" if key.version == 4 else 128
            if service.netmask not in (None, full):
                words += ["-M", str(service.netmask)]
        if service.one_packet:
            words.append("-o")
        flags = service.flags if self._lossless else known_flags(service)
        if flags:
            words += ["-b", ",".join(flags)]
        for option, value in service.options.items():
            words += ["--option", format_option(option, value)]
        return " ".join(words)

    def _server(self, server: Server, name: str, key: ServiceKey) -> str:
        address, port = parse_endpoint(server.address, PROTOCOLS.get(key.protocol, "tcp"))
        label = self._labels.endpoint(address, key.port if port is None else port, key.protocol)
        words = ["-a", name, "-r", label]
        if server.method in METHODS:
            words.append(METHODS[server.method])
        else:
            words += ["--forward", server.method]
        words += ["-w", str(server.weight)]
        if self._lossless and server.upper_threshold:
            words += ["-x", str(server.upper_threshold)]
        if self._lossless and server.lower_threshold:
            words += ["-y", str(server.lower_threshold)]
        options = server.options
        if server.method == "tunnel":
            said, options = tunnels.words_for(options, full=not self._lossless)
            words += said
        for option, value in options.items():
            words += ["--option", format_option(option, value)]
        return " ".join(words)
