"""What a configuration says that cannot be: every fault, with the path of the value at fault.

Types and unknown keys are msgspec's business; here are the rules between values and their ranges,
which the director would refuse too, one at a time and without the path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from lvskit.config.flags import flag_number
from lvskit.config.ipvsadm.labels import PROTOCOLS
from lvskit.config.model import Config, Server, Service, parse_endpoint, parse_netmask
from lvskit.config.settings import SHORT
from lvskit.core.administration import BYPASS
from lvskit.errors import ConfigError
from lvskit.records import ForwarderSpec, build_options
from lvskit.settings import (
    MAX_THRESHOLD,
    MAX_TIMEOUT_S,
    MAX_WEIGHT,
    ServiceKey,
    check_address,
    check_settings,
    endpoint,
)

if TYPE_CHECKING:
    from lvskit.plugins import Plugins

MAX_SIZE = 1 << 30
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def problems(config: Config, plugins: Plugins | None = None) -> list[str]:
    """Return every fault in `config` as `message - at `path``; none if it can be applied.

    Args:
        config: what was read.
        plugins: check names and options against these; None = only what needs no plugin.
    """
    return [f"{message} - at `{path}`" for message, path in _Checker(plugins).config(config)]


Problem = tuple[str, str]


class _Checker:
    def __init__(self, plugins: Plugins | None) -> None:
        self._plugins = plugins

    def config(self, config: Config) -> Iterator[Problem]:
        if not 1 <= config.director.size <= MAX_SIZE:
            yield (
                f"size {config.director.size}; allowed: 1 to {MAX_SIZE} connections",
                "$.director.size",
            )
        yield from _name(config.director.datapath, "datapath", "$.director.datapath")
        for field, name in SHORT.items():
            path, value = f"$.timeouts.{field}", getattr(config.timeouts, field)
            if value is None:
                continue
            yield from _number(value, 0, MAX_TIMEOUT_S, f"timeout {field}", path)
            if name in config.settings:
                yield f"setting {name} is there already, as `{path}`", f"$.settings.{name}"
        yield from self._settings(config.settings, "$.settings")
        seen: dict[ServiceKey, int] = {}
        for index, service in enumerate(config.service):
            path = f"$.service[{index}]"
            try:
                key = service.key()
            except ConfigError as err:
                yield str(err), _naming_path(service, path)
                continue
            if key in seen:
                yield f"service {key} is there already, as `$.service[{seen[key]}]`", path
            seen.setdefault(key, index)
            yield from self._service(service, key, path)

    def _service(self, service: Service, key: ServiceKey, path: str) -> Iterator[Problem]:
        yield from _number(service.persistent, 0, MAX_TIMEOUT_S, "persistent", f"{path}.persistent")
        if key.port == 0 and not key.fwmark and not service.persistent:
            yield f"{key}: port 0 (every port) needs persistence", f"{path}.persistent"
        if service.one_packet and service.protocol != "udp" and not key.fwmark:
            yield "one_packet schedules datagrams; allowed for udp and fwmark", f"{path}.one_packet"
        if service.ipv6 and service.fwmark is None:
            yield "ipv6 belongs to fwmark; an address says it by itself", f"{path}.ipv6"
        yield from _tried(lambda: parse_netmask(service.netmask, key.version), f"{path}.netmask")
        yield from self._scheduler(service, path)
        yield from self._settings(service.settings, f"{path}.settings")
        seen: dict[tuple[bytes, int], int] = {}
        for index, server in enumerate(service.server):
            yield from self._server(server, key, f"{path}.server[{index}]", index, seen)

    def _settings(self, settings: dict[str, Any], path: str) -> Iterator[Problem]:
        for name, value in settings.items():
            place = f"{path}.{name}"
            if value is None:
                yield f"setting {name} has no value", place
                continue
            wrong = list(_tried(partial(check_settings, {name: value}), place))
            if not wrong and name == "cache_bypass" and value and self._plugins:
                wrong = list(_tried(partial(self._plugins.forwarder, BYPASS.method), place))
            yield from wrong

    def _scheduler(self, service: Service, path: str) -> Iterator[Problem]:
        if self._plugins is None:
            yield from _name(service.scheduler, "scheduler", f"{path}.scheduler")
            return
        plugins = self._plugins
        try:
            spec = plugins.scheduler(service.scheduler)
        except ConfigError as err:
            yield str(err), f"{path}.scheduler"
            return
        given: dict[str, Any] = dict(service.options)
        for index, flag in enumerate(service.flags):
            try:
                number = flag_number(spec, flag)
            except ConfigError as err:
                yield str(err), f"{path}.flags[{index}]"
                continue
            if number <= len(spec.flags):
                given[spec.flags[number - 1]] = True
        yield from _tried(lambda: build_options(spec, given), f"{path}.options")

    def _server(
        self,
        server: Server,
        key: ServiceKey,
        path: str,
        index: int,
        seen: dict[tuple[bytes, int], int],
    ) -> Iterator[Problem]:
        yield from _number(server.weight, 0, MAX_WEIGHT, "weight", f"{path}.weight")
        upper, lower = server.upper_threshold, server.lower_threshold
        yield from _number(upper, 0, MAX_THRESHOLD, "upper_threshold", f"{path}.upper_threshold")
        limit = max(upper, 0)
        yield from _number(lower, 0, limit, "lower_threshold", f"{path}.lower_threshold")
        found, spec = self._method(server, path)
        yield from found
        try:
            address, port = parse_endpoint(server.address, PROTOCOLS.get(key.protocol, "tcp"))
            check_address(address)
        except ConfigError as err:
            yield str(err), f"{path}.address"
            return
        if spec is not None and spec.same_version and (len(address) == 4) != (key.version == 4):
            yield (
                f"method {server.method!r} needs a server of its service's IP version, "
                f"{key.version}; {server.address} is not",
                f"{path}.address",
            )
        keeps_port = spec.keeps_port if spec is not None else server.method != "masq"
        if port is None or (keeps_port and not key.fwmark):
            port = key.port
        other = seen.setdefault((address, port), index)
        if other != index:
            there = path.rpartition("[")[0]
            name = endpoint(address, port)
            yield f"server {name} is there already, as `{there}[{other}]`", f"{path}.address"

    def _method(self, server: Server, path: str) -> tuple[list[Problem], ForwarderSpec | None]:
        """Return what is wrong with the method, and its record, None where it is not known."""
        if self._plugins is None:
            return list(_name(server.method, "method", f"{path}.method")), None
        try:
            spec = self._plugins.forwarder(server.method)
        except ConfigError as err:
            return [(str(err), f"{path}.method")], None
        found = list(_tried(lambda: build_options(spec, server.options), f"{path}.options"))
        return found, spec


def _naming_path(service: Service, path: str) -> str:
    named = service.named
    return f"{path}.{named[0]}" if len(named) == 1 else path


def _tried(action: Callable[[], object], path: str) -> Iterator[Problem]:
    try:
        action()
    except (ConfigError, TypeError, ValueError) as err:
        yield str(err), path


def _number(value: int, low: int, high: int, name: str, path: str) -> Iterator[Problem]:
    if not low <= value <= high:
        yield f"{name} {value}; allowed: {low} to {high}", path


def _name(value: str, kind: str, path: str) -> Iterator[Problem]:
    if not _NAME.fullmatch(value):
        yield f"{kind} {value!r}; a plugin's name matches {_NAME.pattern}", path
