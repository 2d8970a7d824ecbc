"""The records that plugins register: what there is by which name, and how it is made.

Frozen and keyword-only; a plugin hands them over in a hook of `lvskit.hookspecs`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Protocol

from lvskit.interfaces import (
    ConnectionObserver,
    Datapath,
    Decapsulator,
    Forwarder,
    RealServer,
    Scheduler,
    VirtualService,
)

API = 1
"""The version of `lvskit.interfaces`; a record made for another one is refused at load."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a scheduler promises, for checks and for choosing among schedulers.

    Attributes:
        weighted: connections are shared in proportion to weights.
        total: it refuses only when no server is available.
        flow_consistent: the same flow gets the same server while the servers stay the same.
    """

    weighted: bool = False
    total: bool = True
    flow_consistent: bool = False


_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MAX_FLAGS = 3  # the kernel has three scheduler flag bits


@dataclass(frozen=True, kw_only=True)
class _Spec:
    """What every record has.

    Attributes:
        name: what people type to choose it; lower case.
        summary: one line for `lvskit plugins`.
        options: a frozen dataclass that the plugin owns, or None; an unknown key, a value of
            another type and a ValueError raised by it become clear errors of the command that
            gave them.
        api: version of these interfaces that it was written for.
    """

    name: str
    summary: str
    options: type[Any] | None = None
    api: int = API

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} does not match [a-z][a-z0-9_]*")
        options: object = self.options  # whatever it was declared, an untyped plugin may differ
        if not (options is None or (isinstance(options, type) and is_dataclass(options))):
            raise ValueError(f"options of {self.name!r}: {options!r} is no dataclass")

    @property
    def option_names(self) -> tuple[str, ...]:
        """The options that it takes, in their order."""
        return tuple(f.name for f in dataclasses.fields(self.options)) if self.options else ()


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec(_Spec):
    """A scheduler that users choose with ``-s NAME``.

    Attributes:
        factory: called with the service's servers and the options object for each service.
        flags: names of boolean options, at most three, that ``-b NAME-option`` (or flag-1,
            flag-2, flag-3) switches on, in the order of the kernel's scheduler flag bits.
        traits: what it promises.
    """

    factory: Callable[[Sequence[RealServer], Any], Scheduler]
    flags: tuple[str, ...] = ()
    traits: Traits = field(default_factory=Traits)

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [flag for flag in self.flags if flag not in self.option_names]
        if unknown or len(self.flags) > _MAX_FLAGS:
            raise ValueError(
                f"flags of {self.name!r}: {self.flags}; allowed: at most {_MAX_FLAGS}, out of its "
                f"options ({', '.join(self.option_names) or 'none'})"
            )


@dataclass(frozen=True, kw_only=True)
class ForwarderSpec(_Spec):
    """A forwarding method: `tunnel`, `local`, `droute`, `masq` are ipvsadm's.

    Attributes:
        factory: called with the real server and the options object once per server.
        keeps_port: packets stay as they are, so a server takes its service's port, and a server
            that is the director itself gets them on its local socket.
        same_version: a server's address must be of the IP version of its service's packets.
    """

    factory: Callable[[RealServer, Any], Forwarder]
    keeps_port: bool = True
    same_version: bool = False


@dataclass(frozen=True, kw_only=True)
class DatapathSpec(_Spec):
    """A datapath that operators choose with ``lvskit run --datapath NAME``.

    Attributes:
        factory: called with the Director's `receive`-side (see `lvskit.control.daemon`) and the
            options object once, at start.
    """

    factory: Callable[[Any, Any], Datapath]


@dataclass(frozen=True, kw_only=True)
class DecapsulatorSpec(_Spec):
    """What takes packets out of tunnels, chosen with ``lvskit realserver up --via NAME``.

    Attributes:
        factory: called by each command with the name of the interface by which tunnel packets
            come in, and a word (letters, digits, hyphens) that is this network namespace's alone.
    """

    factory: Callable[[str, str], Decapsulator]


class Registry(Protocol):
    """Where the director finds plugins by name; `lvskit.load_plugins()` returns one."""

    def scheduler(self, name: str) -> SchedulerSpec:
        """Return the record; `UnknownPlugin`, naming what is installed, where there is none."""

    def forwarder(self, name: str) -> ForwarderSpec:
        """Return the record; `UnknownPlugin`, naming what is installed, where there is none."""

    def observers(self, service: VirtualService) -> Iterable[ConnectionObserver]:
        """Return those that want to follow the connections of `service`."""

    def notify(self, event: str, service: VirtualService, server: RealServer | None = None) -> None:
        """Tell every plugin of a ``service_added`` … ``server_removed`` event."""


def build_options(
    spec: SchedulerSpec | ForwarderSpec | DatapathSpec, given: Mapping[str, Any]
) -> Any:
    """Return the options object of `spec` made from `given`, or None where it takes none.

    Raises:
        ValueError: an unknown key, a value of another type than the plugin's dataclass says, or
            one that it refuses.
    """
    unknown = [key for key in given if key not in spec.option_names]
    if unknown:
        allowed = ", ".join(spec.option_names) or "none"
        raise ValueError(f"unknown option {unknown[0]!r}; options of {spec.name}: {allowed}")
    if spec.options is None:
        return None
    import msgspec  # 30 ms, which a program without options saves

    try:
        return msgspec.convert(dict(given), type=spec.options)
    except msgspec.ValidationError as err:
        # "Expected `int`, got `str` - at `$.seed`", or the words of the dataclass itself.
        what, _, where = str(err).replace("`", "").partition(" - at $.")
        raise ValueError(
            f"option {where!r}: {what[0].lower()}{what[1:]}" if where else what
        ) from err
