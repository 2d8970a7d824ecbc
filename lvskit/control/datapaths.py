"""What the daemon asks of a datapath, and where it finds one by name.

`live` and `memory` are built in; every other name is a `lvskit.DatapathSpec` of a plugin.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Protocol

from lvskit.control.snapshot import Restorer
from lvskit.control.state import no_garbage
from lvskit.core.connection import Connection
from lvskit.core.director import Director
from lvskit.errors import ConfigError, UnknownPlugin
from lvskit.interfaces import Datapath
from lvskit.plugins import Plugins
from lvskit.records import DatapathSpec, build_options
from lvskit.settings import ServiceKey
from lvskit.types import Route

if TYPE_CHECKING:
    from lvskit.datapath.live import LiveDatapath


class Brain:
    """What a datapath's factory is given: the director to be, and the clock to call it with.

    Attributes:
        director: its `receive` takes the packets. A datapath is made before its director, which
            needs the `routes`, so this is there from `run` on and not in the factory.
        clock: monotonic seconds.
    """

    director: Director

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock

    def live(self, options: Mapping[str, Any]) -> LiveDatapath:
        """Return a live datapath, for one that carries some packets only and leaves it the rest.

        Raises:
            ConfigError: options that it does not take.
            DatapathError: it cannot work on this host.
        """
        from lvskit.datapath.live import LiveDatapath, LiveOptions

        spec = DatapathSpec(name="live", summary="", factory=_live, options=LiveOptions)
        return LiveDatapath(_options(spec, options), self.clock)

    @contextmanager
    def restoring(self) -> Iterator[Restorer]:
        """Let a datapath enter connections that it has kept; in the end, what is over ends."""
        now = self.clock()
        restorer = Restorer(self.director, now, now)
        with no_garbage():
            yield restorer
            restorer.finish()


class ServicesChanged(Protocol):
    """Takes note of the services that there are now."""

    def __call__(self, keys: Sequence[ServiceKey]) -> None:
        """Called before the datapath is opened, and after every command that changed something."""


class Refresh(Protocol):
    """Tells the director what the datapath knows and it does not: counters above all."""

    def __call__(self, *, deadlines: bool) -> None:
        """Called before every command; `deadlines`: those of all connections shall be right."""


class Body:
    """A datapath as the daemon uses it: what `Datapath` has not, a datapath may have.

    Attributes:
        routes, run: the datapath's own.
        attach: takes the director, first of all.
        services_changed: see `ServicesChanged`; refresh: see `Refresh`.
        losses: returns packets lost on the way, by place.
        facts: returns what it is here, by name; figures: what it has done since it was opened.
        adopt: brings back what the datapath has kept since the last run; called when the director
            has its services, and before the state file is read, which supplies the rest.
        deadline: returns when a connection ends, as far as the datapath knows; None where it
            brings the connection back itself at the next start, whatever becomes of this process.
        capabilities: numbers of those Linux capabilities that it needs while it runs; None = it
            does not say.
        open: begins to take packets, which wait for `run`; raises `DatapathError` where this host
            lacks something, before the daemon says that it is ready.
        close: undoes every change made to the host; called last, also where `run` never was.
    """

    def __init__(self, datapath: Datapath) -> None:
        def own(name: str, default: Callable[..., Any]) -> Callable[..., Any]:
            found: Callable[..., Any] = getattr(datapath, name, default)
            return found

        self.routes: Callable[[bytes], Route | None] = datapath.routes
        self.run = datapath.run
        self.attach: Callable[[Director], None] = own("attach", _ignore)
        self.services_changed: ServicesChanged = own("services_changed", _ignore)
        self.refresh: Refresh = own("refresh", _ignore)
        self.losses: Callable[[], dict[str, int]] = own("losses", dict)
        self.facts: Callable[[], dict[str, str]] = own("facts", dict)
        self.figures: Callable[[], dict[str, int]] = own("figures", dict)
        self.adopt: Callable[[], None] = own("adopt", _ignore)
        self.deadline: Callable[[Connection], float | None]
        self.deadline = own("deadline", attrgetter("deadline"))
        self.capabilities: frozenset[int] | None = getattr(datapath, "capabilities", None)
        self.open: Callable[[], None] = own("open", _ignore)
        self.close: Callable[[], None] = own("close", _ignore)


def _ignore(*_: object, **__: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class MemoryOptions:
    """Options of the datapath `memory`.

    Attributes:
        addresses: the director's own; the first of an IP version is its source.
        mtu: of the way to every server.
    """

    addresses: list[str] = field(default_factory=lambda: ["192.168.1.175", "fd00::175"])
    mtu: int = 1500

    def __post_init__(self) -> None:
        for address in self.addresses:
            ipaddress.ip_address(address)  # a ValueError names it
        if self.mtu < 1:
            raise ValueError(f"mtu {self.mtu}; allowed: 1 or more")


class MemoryDatapath:
    """A director alone with its commands: no packets come, and the host stays as it is."""

    def __init__(self, options: MemoryOptions) -> None:
        self._own = [ipaddress.ip_address(address).packed for address in options.addresses]
        self._mtu = options.mtu

    def routes(self, address: bytes) -> Route | None:
        """Return a way to every address of an IP version that the director has one of."""
        local = address in self._own or ipaddress.ip_address(address).is_loopback
        for own in self._own:
            if len(own) == len(address):
                return Route(address if local else own, self._mtu, local)
        return None

    async def run(self) -> None:
        """Wait until cancelled."""
        await asyncio.Event().wait()


def _memory(_: Brain, options: MemoryOptions) -> Datapath:
    return MemoryDatapath(options)


def _live(brain: Brain, options: Any) -> Datapath:
    from lvskit.datapath.live import LiveDatapath

    return LiveDatapath(options, brain.clock)


def builtin(name: str) -> DatapathSpec | None:
    """Return the record of a datapath that needs no plugin; the live one's code is loaded late."""
    if name == "memory":
        summary = "no packets and no privileges: for control and tests"
        return DatapathSpec(name=name, summary=summary, factory=_memory, options=MemoryOptions)
    if name == "live":
        from lvskit.datapath.live import LiveOptions

        summary = "this host's packets, by nftables and raw sockets"
        return DatapathSpec(name=name, summary=summary, factory=_live, options=LiveOptions)
    return None


BUILTIN: Final = ("live", "memory")


def make(name: str, options: Mapping[str, Any], plugins: Plugins, brain: Brain) -> Body:
    """Return the datapath of that name.

    Raises:
        UnknownPlugin: there is none of that name.
        ConfigError: options that it does not take.
        DatapathError: it cannot work on this host.
    """
    spec = builtin(name)
    if spec is None:
        if name not in plugins.datapaths:
            others = [f"{n} ({p.source})" for n, p in sorted(plugins.datapaths.items())]
            installed = ", ".join([*BUILTIN, *others])
            text = f"unknown datapath {name!r}; installed: {installed}"
            raise UnknownPlugin(text, kind="datapath", name=name)
        spec = plugins.datapath(name)
    return Body(spec.factory(brain, _options(spec, options)))


def _options(spec: DatapathSpec, given: Mapping[str, Any]) -> Any:
    try:
        return build_options(spec, given)
    except (TypeError, ValueError) as err:
        raise ConfigError(f"datapath {spec.name!r} (director.datapath_options): {err}") from err
