"""A configuration as lines of ipvsadm, and back, without loss.

The lines are what ``lvsadm -R`` reads: ``--set`` first, then each service with its servers in the
order of addition. Settings and thresholds are in them, which ``ipvsadm -S`` leaves out. What is
about the daemon itself (`Config.director`) is no rule, so it is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from lvskit.config.ipvsadm.grammar import parse
from lvskit.config.ipvsadm.labels import Labels
from lvskit.config.ipvsadm.request import Request, Skip, Stop
from lvskit.config.ipvsadm.rules import Rules
from lvskit.config.model import Config, Server, Service, Timeouts
from lvskit.config.names import Names
from lvskit.config.settings import SHORT, director_values, format_assignments, in_short
from lvskit.errors import ConfigError
from lvskit.settings import ServiceKey, endpoint

_MAKING = ("add-service", "add-server", "set")


def split_line(line: str, prog: str = "ipvsadm") -> list[str]:
    """Return the words of a line of rules, without the name of the program at its start.

    There is no quoting, and no comment: ipvsadm has neither.
    """
    words = [word.partition("\0")[0] for word in re.split(r"[ \t\r\n]+", line.strip(" \t\r\n"))]
    while words and words[0] in ("ipvsadm", prog):
        del words[0]
    return words if words != [""] else []


def to_lines(config: Config) -> list[str]:
    """Return the rules that make the services and settings of `config`."""
    rules = Rules(Labels(), lossless=True)
    timeouts, settings = in_short(director_values(config, {}))
    lines = []
    if timeouts:
        lines.append(" ".join(["--set", *(str(timeouts.get(name, 0)) for name in SHORT)]))
    if settings:
        lines.append(" ".join(["--set", *format_assignments(settings)]))
    for service in config.service:
        lines += rules.lines(service, service.server)
    return lines


def from_lines(lines: Iterable[str], names: Names | None = None, source: str = "") -> Config:
    """Return the configuration that rules (``-A``, ``-a`` and ``--set``) describe.

    Args:
        lines: the rules.
        names: finds hosts and ports; by default the system's.
        source: a file's name, for errors.

    Raises:
        ConfigError: a line that is no rule, with its number.
    """
    builder = _Builder()
    for number, line in enumerate(lines, 1):
        words = split_line(line)
        if not words:
            continue
        try:
            builder.take(parse(words, names or Names()))
        except (Stop, Skip, ConfigError) as err:
            text = str(err).strip()
            raise ConfigError(f"{source or 'rules'}:{number}: {text}: {line.strip()}") from err
    return builder.config()


class _Builder:
    """Collects what rules say, as the director would."""

    def __init__(self) -> None:
        self._services: dict[ServiceKey, Service] = {}
        self._servers: dict[ServiceKey, list[Server]] = {}
        self._settings: dict[str, int] = {}

    def take(self, request: Request) -> None:
        if request.command not in _MAKING:
            raise ConfigError(f"'{request.command}' makes no rule; allowed: -A, -a, --set")
        if request.command == "set":
            self._set(request)
            return
        refuse_unsupported(request)
        if request.command == "add-service":
            service = msgspec.convert(request.service_params(), Service)
            key = service.key()
            if key in self._services:
                raise ConfigError(f"service {key} is there already")
            self._services[key] = service
            self._servers[key] = []
            return
        key = self._named(request)
        server = msgspec.convert(request.server_params(), Server)
        if any(server.address == other.address for other in self._servers[key]):
            name = endpoint(request.server, request.server_port)
            raise ConfigError(f"server {name} is in {key} already")
        self._servers[key].append(server)

    def _named(self, request: Request) -> ServiceKey:
        key = msgspec.convert(request.name_params(), Service).key()
        if key not in self._services:
            raise ConfigError(f"no service {key}; -A comes first")
        return key

    def _set(self, request: Request) -> None:
        settings = self._settings
        if "service-address" in request.given:
            settings = self._services[self._named(request)].settings
        short = zip(SHORT.values(), request.numbers, strict=True)
        changes = request.changes or {name: number for name, number in short if number}
        for name, value in changes.items():
            if value is None:
                settings.pop(name, None)
            else:
                settings[name] = value

    def config(self) -> Config:
        timeouts, settings = in_short(self._settings)
        return Config(
            timeouts=Timeouts(**timeouts),
            settings=settings,
            service=[
                msgspec.structs.replace(service, server=self._servers[key])
                for key, service in self._services.items()
            ],
        )


def refuse_unsupported(request: Request) -> None:
    """Raise `ConfigError` for what ipvsadm can ask for and lvskit has not got."""
    reason = unsupported(request)
    if reason:
        raise ConfigError(reason)


def unsupported(request: Request) -> str:
    """Return why a request that ipvsadm would grant cannot be granted; empty if it can."""
    if request.command == "start-daemon":
        return "connection synchronization is not there yet; no plugin provides it"
    if request.engine:
        return f"no plugin provides the persistence engine '{request.engine}'"
    return ""
