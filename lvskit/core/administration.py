"""What operators tell a director: add, edit and remove services and servers, zero, time out.

Every command checks everything first and then changes everything, or raises and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lvskit.core.connection import Connection, ConnectionTable
from lvskit.core.rules import KERNEL, Rules
from lvskit.core.service import RealServer, Transmitter, VirtualService, unreachable
from lvskit.core.services import ServiceTable
from lvskit.errors import ConfigError, PluginError, ServerExists
from lvskit.estimator import Estimator
from lvskit.interfaces import Forwarder, Scheduler
from lvskit.records import Registry, build_options
from lvskit.settings import (
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    Settings,
    check_address,
    check_endpoint,
    check_settings,
    endpoint,
    merged,
)
from lvskit.types import Route

LOCAL = "local"
"""The forwarding method that a server gets whose address is the director's own."""

BYPASS = ServerSettings(method="droute")
"""What carries packets past a service without a server (the setting cache_bypass)."""


class Administration:
    """The half of the Director that takes commands.

    Attributes:
        services: the virtual services.
        table: connections and templates.
        defaults: settings that the operator gave for all services; rules: all that hold for
            what no service has apart.
    """

    def __init__(
        self,
        registry: Registry,
        routes: Callable[[bytes], Route | None],
        size: int,
        report: Callable[[PluginError], None],
    ) -> None:
        self._registry = registry
        self._routes = routes
        self._report = report
        self.services = ServiceTable()
        self.table = ConnectionTable(size)
        self.defaults: dict[str, int] = {}
        self.rules = KERNEL
        self.estimator = Estimator(self.services.counters)

    # --- services ---

    def add_service(self, key: ServiceKey, settings: ServiceSettings) -> VirtualService:
        """Add a virtual service.

        Raises:
            ServiceExists: `key` is taken.
            UnknownPlugin: no such scheduler is installed.
            ConfigError: a setting that cannot be.
        """
        self.services.refuse_duplicate(key)
        settings.check(key)
        service = VirtualService(key, self.rules)
        service.use(self._scheduler(service, settings))
        service.settings = settings
        self.services.add(service)
        service.observe(list(self._registry.observers(service)))
        self._registry.notify("service_added", service)
        return service

    def edit_service(self, key: ServiceKey, settings: ServiceSettings) -> VirtualService:
        """Give a service other settings; its connections and templates stay as they are.

        Raises: as `add_service`, and `ServiceNotFound`.
        """
        service = self.services.get(key)
        settings.check(key)
        before, scheduler = service.scheduler, self._scheduler(service, settings)
        if scheduler is not before:
            self._tell_scheduler(service, "close")
            service.use(scheduler)
        service.settings = settings
        self._registry.notify("service_changed", service)
        return service

    def remove_service(self, key: ServiceKey, now: float) -> None:
        """Remove a service and its servers; their connections stay until they end.

        Raises:
            ServiceNotFound: there is none.
        """
        service = self.services.get(key)
        self._tell_scheduler(service, "close")
        servers = list(service.servers)
        for server in servers:
            self._detach(service, server, now)
        self.services.remove(service)
        self._registry.notify("service_removed", service)
        if servers:
            self._removed(service.rules)

    def clear(self, now: float) -> None:
        """Remove every service (``-C``)."""
        for service in self.services:
            self.remove_service(service.key, now)

    def zero(self, key: ServiceKey | None = None) -> None:
        """Start the statistics of one service, or of all and the total, from 0 again (``-Z``)."""
        chosen = list(self.services) if key is None else [self.services.get(key)]
        for service in chosen:
            for server in service.servers:
                server.estimator.zero()
            service.estimator.zero()
        if key is None:
            self.estimator.zero()

    def tune(self, changes: Mapping[str, int | None], key: ServiceKey | None = None) -> None:
        """Change settings, of the service `key` or of all that have no value of their own.

        `changes` are values by name (see `lvskit.settings.Settings`); None takes a value back: a
        service then has the director's, the director the kernel's.

        Raises:
            ConfigError: a name or a value that cannot be.
            ServiceNotFound: there is none.
            UnknownPlugin: cache_bypass needs direct routing, which is not installed.
        """
        check_settings(changes)
        if changes.get("cache_bypass"):
            self._registry.forwarder(BYPASS.method)
        service = None if key is None else self.services.get(key)
        values = self.defaults if service is None else service.overrides
        for name, value in changes.items():
            if value is None:
                values.pop(name, None)
            else:
                values[name] = value
        self.bind_rules(service)

    def bind_rules(self, only: VirtualService | None = None) -> None:
        """Bind the settings anew, of all services or one, with the defences that are called for."""
        free = self.table.size - len(self.table)
        base = merged(Settings(), self.defaults)
        if only is None:
            self.rules = Rules(base, free)
        servers = [server for service in self.services for server in service.servers]
        before = [(each, each.pmtu_disc) for each in (*servers, *self.services.trash)]
        for service in self.services if only is None else (only,):
            own = service.overrides
            service.rule(Rules(merged(base, own), free) if own else self.rules)
        for server in self.services.trash:
            server.rules = (self.services.by_key.get(server.service.key) or self).rules
        for server, told in before:
            if server.pmtu_disc != told:
                self._rebind(server)

    def tick(self, now: float) -> None:
        """Fold counters into the statistics that listings show; tell schedulers the time."""
        for service in self.services:
            if service.tick is not None:
                self._tell_scheduler(service, "tick", now)
            for server in service.servers:
                server.estimator.tick(server.counters)
            service.estimator.tick(service.counters)
        self.estimator.tick(self.services.counters)

    # --- servers ---

    def add_server(
        self, key: ServiceKey, address: bytes, port: int | None, settings: ServerSettings
    ) -> RealServer:
        """Add a real server at the head of a service's list.

        One that was removed while connections referred to it comes back with them and its counts.
        Without a `port` it has the service's.

        Raises:
            ServiceNotFound, ServerExists, NotUnicast, OutOfRange, UnknownPlugin, ConfigError.
        """
        service = self.services.get(key)
        port = self.server_port(service, port, settings.method)
        check_endpoint(address, port)
        settings.check(endpoint(address, port))
        if any(s.address == address and s.port == port for s in service.servers):
            raise ServerExists(
                f"real server {endpoint(address, port)} is in {service.name} already"
            )
        check_address(address)
        server = self.services.discarded(key, address, port) or RealServer(service, address, port)
        self._bind(server, settings)
        self.services.reclaim(server)
        if server.service is not service:
            server.estimator.zero()
        server.apply(settings)
        service.attach(server)
        self._tell_scheduler(service, "server_added", server)
        self._registry.notify("server_added", service, server)
        return server

    def edit_server(
        self, key: ServiceKey, address: bytes, port: int | None, settings: ServerSettings
    ) -> RealServer:
        """Give a real server other settings; its connections stay with it.

        Raises: as `add_server`, with `ServerNotFound` in place of `ServerExists`.
        """
        service = self.services.get(key)
        port = self.server_port(service, port, settings.method)
        settings.check(endpoint(address, port))
        server = service.find(address, port)
        self._bind(server, settings)
        server.apply(settings)
        self._tell_scheduler(service, "server_updated", server)
        self._registry.notify("server_changed", service, server)
        return server

    def remove_server(self, key: ServiceKey, address: bytes, port: int | None, now: float) -> None:
        """Remove a real server; packets of its connections are dropped until they end.

        With the setting expire_nodest_conn they end at once.

        Raises:
            ServiceNotFound, ServerNotFound.
        """
        service = self.services.get(key)
        server = service.find(address, service.port if port is None else port)
        self._detach(service, server, now)
        self._tell_scheduler(service, "server_removed", server)
        self._removed(service.rules)

    def _removed(self, rules: Rules) -> None:
        """Take note that servers have been removed for which `rules` held."""

    def _detach(self, service: VirtualService, server: RealServer, now: float) -> None:
        service.detach(server)
        self.services.discard(server, now)
        self._registry.notify("server_removed", service, server)

    def server_port(self, service: VirtualService, port: int | None, method: str) -> int:
        """Return the port that a server has: its own only where packets are rewritten."""
        keeps = self._registry.forwarder(method).keeps_port
        if port is None or (keeps and not service.fwmark):
            return service.port
        return port

    # --- binding ---

    def _scheduler(self, service: VirtualService, settings: ServiceSettings) -> Scheduler:
        """Return what shall choose: the present one where its name and options stay."""
        spec = self._registry.scheduler(settings.scheduler)
        try:
            flags = {spec.flags[n - 1]: True for n in settings.flags if n <= len(spec.flags)}
            options = build_options(spec, {**settings.options, **flags})
        except (TypeError, ValueError) as err:
            raise ConfigError(f"scheduler {spec.name!r} of {service.name}: {err}") from err
        if service.choice == (spec, options):
            return service.scheduler
        try:
            scheduler = spec.factory(service.servers, options)
        except Exception as err:
            raise ConfigError(f"scheduler {spec.name!r} of {service.name} failed: {err!r}") from err
        service.choice = spec, options
        return scheduler

    def _tell_scheduler(self, service: VirtualService, method: str, *facts: object) -> None:
        """Call a scheduler's method; what it raises is reported, and the command goes on."""
        try:
            getattr(service.scheduler, method)(*facts)
        except Exception as err:
            self._scheduler_raised(service, method, err)

    def _scheduler_raised(self, service: VirtualService, method: str, err: Exception) -> None:
        name = service.settings.scheduler
        text = f"scheduler {name!r} of {service.name}: {method} raised {err!r}"
        self._report(PluginError(text, plugin=name))

    def _bind(self, server: RealServer, settings: ServerSettings) -> None:
        """Choose what carries a server's connections, by its method and its route.

        Those of a former method keep it, without options: ip_vs binds all but a tunnel's type.
        """
        route, before = self._routes(server.address), dict(server.forwarders)
        forwarder = self._forwarder(server, settings.method, settings)
        keeps_port = self._registry.forwarder(settings.method).keeps_port
        if route is not None and route.local and keeps_port:
            forwarder = self._forwarder(server, LOCAL, settings)
        heirs = {old: self._forwarder(server, method, settings) for method, old in before.items()}
        transmit: Transmitter = unreachable
        if route is not None:
            try:
                for each in {forwarder: None, **dict.fromkeys(heirs.values())}:
                    each.route_changed(route)
            except Exception as err:
                text = f"forwarder {settings.method!r} of {server.name} failed: {err!r}"
                raise ConfigError(text) from err
            transmit = forwarder.transmit
        ways = {old.transmit: new.transmit for old, new in heirs.items() if new is not old}
        for entry in self.table if ways else ():
            if isinstance(entry, Connection) and entry.transmit in ways:
                entry.transmit = ways[entry.transmit]
        server.route, server.transmit = route, transmit
        server.reply = getattr(forwarder, "reply", None)

    def _rebind(self, server: RealServer) -> None:
        """Do that again; where it fails, what carried the server's packets goes on."""
        try:
            self._bind(server, server.settings)
        except ConfigError as err:
            self._report(PluginError(str(err), plugin=server.settings.method))

    def _forwarder(self, server: RealServer, method: str, settings: ServerSettings) -> Forwarder:
        given = settings.options if method == settings.method else {}
        if server.made.get(method) == given:
            return server.forwarders[method]
        spec, version = self._registry.forwarder(method), server.service.key.version
        if spec.same_version and len(server.address) != (4 if version == 4 else 16):
            raise ConfigError(
                f"{method!r} needs an IPv{version} server, which {server.name} is not"
            )
        try:
            options = build_options(spec, given)
        except (TypeError, ValueError) as err:
            raise ConfigError(f"forwarder {method!r} of {server.name}: {err}") from err
        try:
            forwarder = server.forwarders[method] = spec.factory(server, options)
            server.made[method] = given
        except Exception as err:
            raise ConfigError(f"forwarder {method!r} of {server.name} failed: {err!r}") from err
        return forwarder
