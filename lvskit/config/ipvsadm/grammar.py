"""Words to a `Request`: what ipvsadm accepts, and its own words for what it does not.

Options are acted on from left to right, and the first fault ends it; faults that need the whole
line (options that a command does not take, ones that it lacks) come after. Source: ipvsadm(8),
and what ipvsadm 1.31 was seen to do; the recordings are in ``tests/vectors``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from lvskit.config.ipvsadm import table, tunnels, values
from lvskit.config.ipvsadm.request import DEFAULT_SCHEDULER, Request, Skip, Stop
from lvskit.config.ipvsadm.words import BadWord, Words
from lvskit.config.names import Names
from lvskit.config.settings import assignments
from lvskit.errors import ConfigError
from lvskit.settings import MAX_TIMEOUT_S

DEFAULT_PERSISTENCE_S = 360
MAX_MARK = 2**32 - 1
_PROTOCOLS = {"tcp-service": "tcp", "udp-service": "udp", "sctp-service": "sctp"}
_METHODS = {"gatewaying": "droute", "ipip": "tunnel", "masquerading": "masq"}
_RANGES = {
    "weight": (0, values.INT_MAX, "weight", "illegal weight specified"),
    "u-threshold": (0, values.INT_MAX, "upper", "illegal u_threshold specified"),
    "l-threshold": (0, values.INT_MAX, "lower", "illegal l_threshold specified"),
    "tun-port": (1, 65535, "tunnel_port", "illegal tunnel port specified"),
    "syncid": (0, 255, "", "illegal syncid specified"),
    "sync-maxlen": (1, 65535 - 20 - 8, "", "illegal sync-maxlen specified"),
    "mcast-port": (1, 65535, "", "illegal mcast-port specified"),
    "mcast-ttl": (1, 255, "", "illegal mcast-ttl specified"),
}
"""Options that are numbers: from, to, the attribute that keeps them, the complaint."""


def try_help(prog: str) -> Stop:
    """Return how a line ends that begins with no command."""
    return Stop(255, f"Try `{prog} -h' or '{prog} --help' for more information.")


def parse(words: Sequence[str], names: Names, prog: str = "ipvsadm") -> Request:
    """Return what `words` (without the program's name) ask for.

    Raises:
        Stop: nothing can be made of them; the program ends.
        Skip: a word is no option; only this line ends.
    """
    reader = Words(words, table.OPTIONS)
    request = _command(reader, prog)
    if request.command in ("help", "version"):
        return request
    line = _Line(request, names)
    try:
        while (found := reader.next()) is not None:
            option, value = found
            if option.letter in table.COMMANDS or option.name in table.COMMANDS:
                raise Stop(2, f"invalid option `{reader.word}'")
            line.take(option.name, value or "", bare=value is None)
    except BadWord as err:
        raise Skip(f"{reader.word}: {err}") from None
    others = reader.others
    if request.command == "set":
        others = _set(request, others)
    if others:
        raise Stop(2, f"unexpected argument {others[0]}")
    _check_options(request)
    if request.command in ("add-service", "edit-service"):
        _check_service(request)
    elif request.command in ("add-server", "edit-server"):
        _check_server(request)
    elif request.command == "list":
        _check_list(request)
    return request


def _set(request: Request, words: list[str]) -> list[str]:
    """Take in what ``--set`` sets; return the words that are left."""
    if any("=" in word for word in words):  # lvskit's own: no timeout has such a word
        try:
            request.changes = assignments(words)
        except ConfigError as err:
            raise Stop(2, str(err)) from err
        return []
    if len(words) < 3:
        raise Stop(2, "--set option requires 3 timeout values")
    tcp, tcp_fin, udp = (_timeout(text, 0) for text in words[:3])
    request.numbers = (tcp, tcp_fin, udp)
    return words[3:]


def _command(reader: Words, prog: str) -> Request:
    try:
        found = reader.next()
    except BadWord:
        found = None
    if found is None:
        raise try_help(prog)
    option, value = found
    command = table.COMMANDS.get(option.letter or option.name)
    if command is None:
        raise try_help(prog)
    if option.name in ("start-daemon", "stop-daemon") and value not in ("master", "backup"):
        which = "start-daemon parameter" if command == "start-daemon" else "start_daemon"
        raise Stop(2, f"illegal {which} specified")
    return Request(command)


class _Line:
    """Acts on the options of one line."""

    def __init__(self, request: Request, names: Names) -> None:
        self.request = request
        self.names = names
        self._special: dict[str, Callable[[str], None]] = {
            "scheduler": self._scheduler,
            "netmask": self._netmask,
            "real-server": self._server,
            "sched-flags": self._flags,
            "pe": self._engine,
            "tun-type": self._tunnel,
            "mcast-group": self._group,
        }

    def take(self, name: str, value: str, *, bare: bool) -> None:
        """Act on option `name`; `bare`: an optional value was left out."""
        request = self.request
        if name == "sort":
            return  # the default
        if name == "ipv6":
            self._ipv6()
        elif name == "option":
            self._option(value)
        elif name in _PROTOCOLS:
            self._set("service-address")
            self._service(_PROTOCOLS[name], value)
        elif name == "fwmark-service":
            self._set("service-address")
            self._fwmark(value)
        elif name in _METHODS or name == "forward":
            self._set("forwarding-method")
            request.method = _METHODS.get(name, value)
        elif name in _RANGES:
            self._set(name)
            low, high, attribute, complaint = _RANGES[name]
            number = values.number(value, low, high)
            if number is None:
                raise Stop(2, complaint)
            if attribute:
                setattr(request, attribute, number)
        elif name == "persistent":
            self._set(name)
            request.persistent = DEFAULT_PERSISTENCE_S if bare else _timeout(value, 1)
        else:
            self._set(name)
            if name in self._special:
                self._special[name](value)

    def _set(self, option: str) -> None:
        if option in self.request.given:
            raise Stop(2, f"multiple '{option}' options specified")
        self.request.given.add(option)

    def _service(self, protocol: str, text: str) -> None:
        request = self.request
        request.protocol = protocol
        found = values.endpoint(text, protocol, self.names)
        if found is None:
            raise Stop(2, "illegal virtual server address[:port] specified")
        request.address, port = found
        request.port = port or 0
        request.version = 4 if len(request.address) == 4 else 6
        if request.version == 6:
            request.netmask = None  # a mask that was given before is forgotten

    def _fwmark(self, text: str) -> None:
        number = values.number(text, 1, MAX_MARK)
        if number is None:
            raise Stop(2, f"invalid fwmark value `{text}' specified")
        request = self.request
        request.fwmark, request.version, request.protocol = number, 4, "tcp"

    def _ipv6(self) -> None:
        request = self.request
        if not request.fwmark:
            raise Stop(2, "-6 used before -f\n")
        request.version, request.netmask = 6, None

    def _scheduler(self, text: str) -> None:
        self.request.scheduler = text

    def _engine(self, text: str) -> None:
        self.request.engine = text

    def _netmask(self, text: str) -> None:
        if self.request.version == 6:
            length = values.prefix_length(text)
            if length is None:
                raise Stop(2, "illegal ipv6 netmask specified")
            self.request.netmask = length
            return
        mask = values.mask(text, self.names)
        if mask is None:
            raise Stop(2, "illegal virtual server persistent mask specified")
        self.request.netmask = mask

    def _server(self, text: str) -> None:
        request = self.request
        # As in ipvsadm, a server named before its service has neither its protocol nor its port.
        found = values.endpoint(text, request.protocol, self.names)
        if found is None:
            raise Stop(2, "illegal real server address[:port] specified")
        request.server, port = found
        request.server_port = request.port if port is None else port

    def _flags(self, text: str) -> None:
        self.request.flags = list(dict.fromkeys(flag for flag in text.split(",") if flag))

    def _tunnel(self, text: str) -> None:
        if text not in table.TUNNEL_REFUSED:
            raise Stop(2, "illegal tunnel type specified")
        self.request.tunnel = text

    def _group(self, text: str) -> None:
        family, prefix = (socket.AF_INET6, 0xFF) if ":" in text else (socket.AF_INET, 0xE0)
        try:
            first = socket.inet_pton(family, text)[0]
        except (OSError, ValueError):
            first = 0
        if first & prefix != prefix or (family == socket.AF_INET and first >= 0xF0):
            version = "IPv6" if ":" in text else "IPv4"
            raise Stop(2, f"invalid {version} mcast-group `{text}'")

    def _option(self, text: str) -> None:
        pair = values.option_pair(text)
        if pair is None:
            raise Stop(2, f"invalid option value `{text}'; allowed: name=value")
        if pair[0] in self.request.options:
            raise Stop(2, f"option `{pair[0]}' specified twice")
        self.request.given.add("option")
        self.request.options[pair[0]] = pair[1]


def _timeout(text: str, low: int) -> int:
    value = values.number(text, low, MAX_TIMEOUT_S)
    if value is None:
        raise Stop(2, f"invalid timeout value `{text}' specified")
    return value


def _check_options(request: Request) -> None:
    command, given = request.command, request.given
    required = table.REQUIRED.get(command, frozenset())
    exclusive = table.EXCLUSIVE.get(command, frozenset())
    allowed = table.ALLOWED[command] | required | exclusive
    if request.changes:
        allowed |= table.ADDRESS
    last = ""
    for option in table.ORDER:
        if option not in given:
            if option in required:
                raise Stop(
                    2, f"You need to supply the '{option}' option for the '{command}' command"
                )
        elif option not in allowed:
            raise Stop(2, f"Illegal '{option}' option with the '{command}' command")
        elif option in exclusive:
            if last:
                raise Stop(
                    2,
                    f"The option '{option}' conflicts with the '{last}' option in the "
                    f"'{command}' command",
                )
            last = option


def _check_service(request: Request) -> None:
    if not request.fwmark:
        if not request.port and not request.persistent:
            raise Stop(2, "Zero port specified for non-persistent service")
        if "ops" in request.given and request.protocol != "udp":
            raise Stop(2, "One-Packet Scheduling is only for UDP virtual services")
    request.one_packet = "ops" in request.given
    request.scheduler = request.scheduler or DEFAULT_SCHEDULER
    for flag in request.flags:
        if flag not in values.FLAGS and not _may_be_own(flag, request.scheduler):
            raise Stop(2, f"invalid scheduler flag `{flag}'")
        if values.FLAGS.get(flag, "") not in ("", request.scheduler):
            raise Stop(2, f"incompatible scheduler flag `{flag}'")


def _may_be_own(flag: str, scheduler: str) -> bool:
    """Whether the director shall say if a scheduler has this flag: lvskit's extension."""
    return scheduler not in values.OWN_FLAGS and flag.startswith(f"{scheduler}-")


def _check_server(request: Request) -> None:
    method, given = request.method, request.given
    if method in ("tunnel", "droute") and not request.fwmark:
        request.server_port = request.port
    same_family = len(request.server) == (4 if request.version == 4 else 16)
    if not same_family and method in ("droute", "masq"):
        raise Stop(2, "Different address family is allowed only for tunneling servers")
    if method != "tunnel" and given & table.TUNNEL_OPTIONS:
        raise Stop(2, "Tunnel options conflict with forward method")
    tunnel = request.tunnel
    if tunnel == "gue" and "tun-port" not in given:
        raise Stop(2, "You need to supply the 'tun-port' option for the 'gue' tunnel type")
    for option in ("tun-port", *tunnels.CHECKSUMS):
        if option in given & table.TUNNEL_REFUSED[tunnel]:
            raise Stop(2, f"Illegal '{option}' option with the '{tunnel}' tunnel type")
    chosen = [option for option in tunnels.CHECKSUMS if option in given]
    if len(chosen) > 1:
        raise Stop(
            2,
            f"The option '{chosen[1]}' conflicts with the '{chosen[0]}' option in the "
            f"'{tunnel}' tunnel type",
        )
    for name, value in tunnels.options_of(tunnel, request.tunnel_port, given).items():
        if name in request.options:
            raise Stop(2, f"option `{name}' specified twice")
        request.options[name] = value


def _check_list(request: Request) -> None:
    given = request.given
    figures = {"stats", "rate", "thresholds"}
    # Listing connections with --persistent-conn adds their persistence engines' data.
    without_engines = figures | {"persistent-conn"}
    if ("connection" in given and given & figures) or (
        given & {"timeout", "daemon"} and given & without_engines
    ):
        raise Stop(2, "options conflicts in the list command")
