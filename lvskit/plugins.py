"""Finds installed plugins and keeps what they register, each record with its provenance.

The bundled plugins come through the same entry points (group ``lvskit``) as everybody else's.
The loop is our own because pluggy's skips a second entry point of the same name in silence and
dies on one ImportError without naming the distribution.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pluggy

from lvskit import hookspecs
from lvskit.errors import PluginError, UnknownPlugin
from lvskit.interfaces import ConnectionObserver, RealServer, VirtualService
from lvskit.records import API, DatapathSpec, DecapsulatorSpec, ForwarderSpec, SchedulerSpec

GROUP = "lvskit"
DISABLE_VARIABLE = "LVSKIT_DISABLE_PLUGINS"
_log = logging.getLogger(__name__)
S = TypeVar("S", SchedulerSpec, ForwarderSpec, DatapathSpec, DecapsulatorSpec)


@dataclass(frozen=True)
class Source:
    """Where a plugin came from: entry point, distribution and version."""

    entry_point: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Provided(Generic[S]):
    """A registered record and the plugin that supplied it."""

    spec: S
    source: Source


@dataclass(frozen=True)
class Failure:
    """A plugin that did not load, and why."""

    source: Source
    error: PluginError


class Plugins:
    """The loaded plugins: records by kind and name, hooks, and what failed.

    Attributes:
        schedulers, forwarders, datapaths, decapsulators: what is installed, by name.
        hooks: the names of the hooks that each plugin implements.
        failures: plugins that did not load; the rest go on without them.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self.schedulers: dict[str, Provided[SchedulerSpec]] = {}
        self.forwarders: dict[str, Provided[ForwarderSpec]] = {}
        self.datapaths: dict[str, Provided[DatapathSpec]] = {}
        self.decapsulators: dict[str, Provided[DecapsulatorSpec]] = {}
        self.hooks: dict[Source, list[str]] = {}
        self.failures: list[Failure] = []

    def add(self, plugin: object, source: Source) -> None:
        """Register `plugin`, a module or any object with hooks, whole or not at all.

        Raises:
            PluginError: no hook, a misspelt one, a wrong signature, a record of the wrong type or
                for another api, or a name that another plugin has taken.
        """
        manager = self._manager
        if manager.is_registered(plugin):
            first = manager.get_name(plugin)
            raise PluginError(
                f"{source}: registered already, as {first}", plugin=source.distribution
            )
        try:
            manager.register(plugin, name=f"{source.distribution}:{source.entry_point}")
            manager.check_pending()
            records = self._records(plugin, source)
        except Exception as err:
            # Some versions of pluggy keep a plugin whose registration failed.
            if manager.is_registered(plugin):
                manager.unregister(plugin)
            if isinstance(err, PluginError):
                raise
            raise PluginError(f"{source}: {err}", plugin=source.distribution) from err
        for table, provided in records:
            table[provided.spec.name] = provided
        callers = manager.get_hookcallers(plugin) or []
        self.hooks[source] = sorted(caller.name for caller in callers)

    def _records(
        self, plugin: object, source: Source
    ) -> list[tuple[dict[str, Provided[Any]], Provided[Any]]]:
        """Call the plugin's own register hooks and check every record against those there are."""
        found: list[tuple[dict[str, Provided[Any]], Provided[Any]]] = []
        tables: dict[str, tuple[type, dict[str, Provided[Any]]]] = {
            "lvskit_register_schedulers": (SchedulerSpec, self.schedulers),
            "lvskit_register_forwarders": (ForwarderSpec, self.forwarders),
            "lvskit_register_datapaths": (DatapathSpec, self.datapaths),
            "lvskit_register_decapsulators": (DecapsulatorSpec, self.decapsulators),
        }
        for hook, impl in self._implementations(plugin, source):
            if hook not in tables:
                continue
            wanted, table = tables[hook]
            try:
                specs: list[Any] = list(impl.function())  # type: ignore[call-overload]
            except Exception as err:
                raise PluginError(
                    f"{source}: {hook} raised {err!r}", plugin=source.distribution
                ) from err
            for spec in specs:
                _check_record(spec, wanted, hook, source)
                taken = [p for t, p in found if t is table and p.spec.name == spec.name]
                other = table.get(spec.name) or (taken[0] if taken else None)
                if other:
                    kind = hook.removeprefix("lvskit_register_").removesuffix("s")
                    raise PluginError(
                        f"{kind} {spec.name!r} is provided by both {other.source} and "
                        f"{source}; uninstall one, or disable it with {DISABLE_VARIABLE}",
                        plugin=source.distribution,
                    )
                found.append((table, Provided(spec, source)))
        return found

    def _implementations(self, plugin: object, source: Source) -> list[tuple[str, pluggy.HookImpl]]:
        """Return the plugin's hooks by name; a plugin without any is a mistake of its author."""
        callers = self._manager.get_hookcallers(plugin)
        if not callers:
            raise PluginError(
                f"{source}: {plugin!r} implements no hook; was @lvskit.hookimpl forgotten?",
                plugin=source.distribution,
            )
        found = [
            (caller.name, impl)
            for caller in callers
            for impl in caller.get_hookimpls()
            if impl.plugin is plugin
        ]
        for hook, impl in found:
            if impl.hookwrapper or impl.wrapper:
                raise PluginError(
                    f"{source}: {hook} is a wrapper; hooks of lvskit are not wrapped",
                    plugin=source.distribution,
                )
        return found

    # --- what the Director asks (lvskit.records.Registry) ---

    def scheduler(self, name: str) -> SchedulerSpec:
        """Return the scheduler's record; see `lvskit.records.Registry`."""
        return self._find("scheduler", self.schedulers, name)

    def forwarder(self, name: str) -> ForwarderSpec:
        """Return the forwarding method's record; see `lvskit.records.Registry`."""
        return self._find("forwarder", self.forwarders, name)

    def datapath(self, name: str) -> DatapathSpec:
        """Return the datapath's record; `UnknownPlugin` where there is none."""
        return self._find("datapath", self.datapaths, name)

    def decapsulator(self, name: str) -> DecapsulatorSpec:
        """Return the decapsulator's record; `UnknownPlugin` where there is none."""
        return self._find("decapsulator", self.decapsulators, name)

    def _find(self, kind: str, table: Mapping[str, Provided[S]], name: str) -> S:
        if name in table:
            return table[name].spec
        installed = ", ".join(f"{n} ({p.source})" for n, p in sorted(table.items())) or "none"
        text = f"unknown {kind} {name!r}; installed: {installed}"
        if self.failures:
            broken = "; ".join(str(failure.error) for failure in self.failures)
            text += f"; failed to load: {broken}"
        raise UnknownPlugin(text, kind=kind, name=name)

    def observers(self, service: VirtualService) -> Iterable[ConnectionObserver]:
        """Return the observers that plugins want on `service`."""
        return self._call("lvskit_connection_observer", service=service)

    def notify(self, event: str, service: VirtualService, server: RealServer | None = None) -> None:
        """Call the hook ``lvskit_EVENT``; a plugin that raises is reported, not obeyed."""
        arguments: dict[str, object] = {"service": service}
        if server is not None:
            arguments["server"] = server
        self._call(f"lvskit_{event}", **arguments)

    def _call(self, hook: str, **arguments: object) -> list[Any]:
        """Call each implementation by itself, so that one that raises does not stop the others."""
        results = []
        caller = getattr(self._manager.hook, hook)
        for impl in reversed(caller.get_hookimpls()):
            given = {name: arguments[name] for name in impl.argnames}
            try:
                result = impl.function(**given)
            except Exception:
                _log.exception("plugin %s: %s raised", impl.plugin_name, hook)
                continue
            if result is not None:
                results.append(result)
        return results


def _check_record(spec: object, wanted: type, hook: str, source: Source) -> None:
    if not isinstance(spec, wanted):
        raise PluginError(
            f"{source}: {hook} returned {spec!r}; it takes {wanted.__name__} records",
            plugin=source.distribution,
        )
    api = spec.api  # type: ignore[attr-defined]
    if api != API:
        name = spec.name  # type: ignore[attr-defined]
        raise PluginError(
            f"{source}: {name!r} was written for plugin api {api}; this lvskit supports {API}",
            plugin=source.distribution,
        )


def load_plugins(
    *,
    strict: bool = False,
    disable: Iterable[str] | None = None,
    entry_points: Callable[[], Iterable[importlib.metadata.EntryPoint]] | None = None,
) -> Plugins:
    """Load every installed plugin and return them.

    Args:
        strict: raise at the first plugin that does not load, instead of remembering it.
        disable: names of entry points or distributions to leave alone; by default those in the
            environment variable ``LVSKIT_DISABLE_PLUGINS``, separated by commas.
        entry_points: where to look; by default the installed distributions.

    Raises:
        PluginError: under `strict`, the first failure; it names the distribution.
    """
    if disable is None:
        disable = os.environ.get(DISABLE_VARIABLE, "").split(",")
    blocked = {name.strip() for name in disable}
    plugins = Plugins()
    found = entry_points or (lambda: importlib.metadata.entry_points(group=GROUP))
    for point in sorted(found(), key=lambda p: (_source(p).distribution, p.name)):
        source = _source(point)
        if point.name in blocked or source.distribution in blocked:
            continue
        try:
            plugins.add(_import(point, source), source)
        except PluginError as err:
            if strict:
                raise
            plugins.failures.append(Failure(source, err))
            _log.warning("plugin not loaded: %s", err)
    return plugins


def _import(point: importlib.metadata.EntryPoint, source: Source) -> object:
    try:
        return point.load()
    except (Exception, SystemExit) as err:  # whatever a stranger's module does when imported
        raise PluginError(
            f"{source}: importing {point.value!r} failed: {err!r}", plugin=source.distribution
        ) from err


def _source(point: importlib.metadata.EntryPoint) -> Source:
    dist = point.dist
    if dist is None:
        return Source(point.name, "unknown distribution", "?")
    return Source(point.name, dist.name, dist.version)
