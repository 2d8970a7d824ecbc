"""The commands of the control socket, carried out on a Director.

`Control.call` is the one door for everybody: the socket's server, `lvsadm` in one process with a
Director (tests, the simulator), and embedding applications. Parameters and results are the types
of `lvskit.config.model`, so that what a command says is checked in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from lvskit.config.flags import flag_name, flag_number
from lvskit.config.model import (
    Config,
    Server,
    Service,
    Timeouts,
    parse_endpoint,
    parse_netmask,
    service_of,
)
from lvskit.config.settings import SHORT, in_short
from lvskit.config.status import (
    ConnectionStatus,
    DatapathStatus,
    ServiceStatus,
    SettingStatus,
    Status,
)
from lvskit.control import tuning
from lvskit.control.figures import figures, passed, server_config, server_status
from lvskit.control.reconcile import reconcile
from lvskit.core.director import Director
from lvskit.core.service import VirtualService
from lvskit.errors import ConfigError, RpcError
from lvskit.plugins import Plugins
from lvskit.settings import ServiceKey, ServiceSettings, endpoint, plain
from lvskit.types import PROTOCOL_NAMES

IPVS_VERSION = "1.2.1"
"""The version of ip_vs whose behaviour this is, as listings name it."""


class Named(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Parameters that name one service, and may name one server of it."""

    service: Service
    server: Server | None = None


class MaybeNamed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Parameters that may name one service; without one, all are meant."""

    service: Service | None = None


class Set(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Parameters of `set_timeouts`."""

    timeouts: Timeouts


class Tune(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Parameters of `set_settings`; null takes a value back."""

    settings: dict[str, int | None]
    service: Service | None = None


class Apply(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Parameters of `apply`: what there shall be, instead of what there is."""

    config: Config


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """No parameters."""


class Control:
    """Carries out commands, each whole or not at all.

    Args:
        director: whose services they are.
        plugins: what is installed.
        clock: monotonic seconds, as the director's datapath counts them.
        changed: called after every command that changed services, servers or settings.
        lost: returns the packets that the datapath has lost, by place.
        datapath: returns what carries the packets.
        refresh: called before every command, so that what the director knows is up to date;
            `deadlines` where those of all connections count.
    """

    def __init__(
        self,
        director: Director,
        plugins: Plugins,
        clock: Callable[[], float],
        changed: Callable[[], None] = lambda: None,
        lost: Callable[[], dict[str, int]] = dict,
        datapath: Callable[[], DatapathStatus] = lambda: DatapathStatus("", {}, {}),
        refresh: Callable[..., None] = lambda *, deadlines: None,
    ) -> None:
        self.director = director
        self.plugins = plugins
        self._clock = clock
        self._started = clock()
        self._changed = changed
        self._lost = lost
        self._datapath = datapath
        self._refresh = refresh
        self._methods: dict[str, tuple[type[msgspec.Struct], Callable[[Any], Any], bool]] = {
            "status": (Nothing, self._status, False),
            "connections": (Nothing, self._connections, False),
            "config": (Nothing, lambda _: self.config(), False),
            "settings": (MaybeNamed, self._settings, False),
            "plugins": (Nothing, self._plugins, False),
            "add_service": (Named, self._add_service, True),
            "edit_service": (Named, self._edit_service, True),
            "delete_service": (Named, self._delete_service, True),
            "add_server": (Named, self._add_server, True),
            "edit_server": (Named, self._edit_server, True),
            "delete_server": (Named, self._delete_server, True),
            "clear": (Nothing, self._clear, True),
            "zero": (MaybeNamed, self._zero, False),
            "set_settings": (Tune, self._set_settings, True),
            "set_timeouts": (Set, self._set_timeouts, True),
            "apply": (Apply, self._apply, True),
        }

    @property
    def methods(self) -> list[str]:
        """The names of all commands."""
        return list(self._methods)

    def call(self, method: str, params: object = None) -> Any:
        """Carry out `method`; return its result as plain values (dicts, lists, text, numbers).

        Raises:
            LvskitError: of the kind that `code` names; nothing was changed.
        """
        if method not in self._methods:
            raise RpcError(
                f"unknown method {method!r}; there are: {', '.join(self._methods)}", "method"
            )
        shape, run, changes = self._methods[method]
        try:
            arguments = msgspec.convert(params or {}, shape)
        except msgspec.ValidationError as err:
            raise ConfigError(f"{method}: {err}") from err
        self._refresh(deadlines=method == "connections")
        result = run(arguments)
        if changes:
            self._changed()
        return msgspec.to_builtins(result)

    # --- what is ---

    def _status(self, _: Nothing) -> Status:
        director, now = self.director, self._clock()
        director.expire(now)
        table = director.table
        stats, rates = figures(director.estimator)
        return Status(
            version=IPVS_VERSION,
            started=self._started,
            now=now,
            datapath=self._datapath(),
            size=table.size,
            timeouts=self._timeouts(),
            settings=tuning.given(director),
            defences=tuning.defences(director.rules),
            services=[self._service_status(service) for service in director.services],
            stats=stats,
            rates=rates,
            counters=passed(director.services.counters),
            entries=len(table),
            half_open=len(table.half_open),
            shed=table.shed,
            refused=table.refused,
            dropped_entries=table.dropped_entries,
            dropped_packets=table.dropped_packets,
            lost=self._lost(),
        )

    def _service_status(self, service: VirtualService) -> ServiceStatus:
        stats, rates = figures(service.estimator)
        return ServiceStatus(
            config=self._service_config(service),
            servers=[server_status(server) for server in service.servers],
            defences=tuning.defences(service.rules),
            stats=stats,
            rates=rates,
            counters=passed(service.counters),
        )

    def _service_config(self, service: VirtualService) -> Service:
        settings = service.settings
        spec = self.plugins.scheduler(settings.scheduler)
        names = [flag_name(spec, number) for number in sorted(settings.flags)]
        return service_of(service.key, settings, names, tuning.given(self.director, service.key))

    def _connections(self, _: Nothing) -> list[ConnectionStatus]:
        now = self._clock()
        entries = []
        for entry in self.director.connections(now):
            flow = entry.flow
            entries.append(
                ConnectionStatus(
                    protocol=PROTOCOL_NAMES[flow.protocol],
                    client=endpoint(flow.caddr, flow.cport),
                    virtual=endpoint(flow.vaddr, flow.vport),
                    server=endpoint(entry.server.address, entry.dport),
                    state=entry.state_name,
                    expires_s=entry.deadline - now,
                )
            )
        return entries

    def config(self) -> Config:
        """Return what there is, as a configuration that would make it again."""
        services = []
        for service in self.director.services:
            servers = [server_config(server) for server in reversed(service.servers)]
            config = self._service_config(service)
            services.append(msgspec.structs.replace(config, server=servers))
        timeouts, others = in_short(tuning.given(self.director))
        return Config(timeouts=Timeouts(**timeouts), settings=others, service=services)

    def _settings(self, named: MaybeNamed) -> list[SettingStatus]:
        return list(tuning.table(self.director, named.service.key() if named.service else None))

    def _plugins(self, _: Nothing) -> list[dict[str, str]]:
        rows = []
        for kind in ("schedulers", "forwarders", "datapaths"):
            for name, provided in getattr(self.plugins, kind).items():
                spec = provided.spec
                flags = [flag_name(spec, n + 1) for n in range(len(getattr(spec, "flags", ())))]
                rows.append(
                    {
                        "kind": kind[:-1],
                        "name": name,
                        "distribution": provided.source.distribution,
                        "version": provided.source.version,
                        "summary": spec.summary,
                        "flags": ",".join(flags),
                    }
                )
        return rows

    # --- services and servers ---

    def settings(self, service: Service, key: ServiceKey) -> ServiceSettings:
        """Return a service's settings as the core takes them."""
        spec = self.plugins.scheduler(service.scheduler)
        return ServiceSettings(
            scheduler=service.scheduler,
            options=service.options,
            flags=frozenset(flag_number(spec, name) for name in service.flags),
            persistence_s=service.persistent,
            netmask=parse_netmask(service.netmask, key.version),
            one_packet=service.one_packet,
        )

    def _add_service(self, named: Named) -> None:
        service, key = named.service, named.service.key()
        self.director.services.refuse_duplicate(key)
        tuning.check(self.plugins, service.settings, key)
        self.director.add_service(key, self.settings(service, key))
        tuning.make(self.director, service.settings, key)

    def _edit_service(self, named: Named) -> None:
        service, key = named.service, named.service.key()
        self.director.services.get(key)
        tuning.check(self.plugins, service.settings, key)
        self.director.edit_service(key, self.settings(service, key))
        if service.settings:
            tuning.make(self.director, service.settings, key)

    def _delete_service(self, named: Named) -> None:
        self.director.remove_service(named.service.key(), self._clock())

    def _clear(self, _: Nothing) -> None:
        self.director.clear(self._clock())

    def _zero(self, named: MaybeNamed) -> None:
        self.director.zero(named.service.key() if named.service else None)

    def _set_settings(self, given: Tune) -> None:
        key = given.service.key() if given.service else None
        tuning.check(self.plugins, given.settings, key)
        self.director.tune(plain(given.settings), key)

    def _set_timeouts(self, given: Set) -> None:
        values = {setting: getattr(given.timeouts, name) for name, setting in SHORT.items()}
        self.director.tune({name: value for name, value in values.items() if value})

    def _timeouts(self) -> Timeouts:
        settings = self.director.rules.settings
        return Timeouts(**{name: getattr(settings, of) for name, of in SHORT.items()})

    def _server(self, named: Named) -> tuple[ServiceKey, bytes, int | None, Server]:
        if named.server is None:
            raise ConfigError("parameter server is missing - at $.server")
        address, port = parse_endpoint(named.server.address, named.service.protocol)
        return named.service.key(), address, port, named.server

    def _add_server(self, named: Named) -> None:
        key, address, port, server = self._server(named)
        self.director.add_server(key, address, port, server.settings())

    def _edit_server(self, named: Named) -> None:
        key, address, port, server = self._server(named)
        self.director.edit_server(key, address, port, server.settings())

    def _delete_server(self, named: Named) -> None:
        key, address, port, _ = self._server(named)
        self.director.remove_server(key, address, port, self._clock())

    def _apply(self, given: Apply) -> list[str]:
        return reconcile(self, given.config, self._clock())
