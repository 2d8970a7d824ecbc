"""Persistence templates, written down for the next daemon as they are made and used."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Any, Final, Protocol

from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.layout import TemplateFlag
from lvskit_datapath_xdp.loader import BpfError, Map, MapSpec, MapType
from lvskit_datapath_xdp.loader.mapspec import MapFlags
from lvskit_datapath_xdp.names import Name

# A template as few differ in it, and its end and timeout.
_HALVES: Final = Struct(f"<{layout.TEMPLATE.size - 16}sdd")

_log = logging.getLogger(__name__)

Template = Any
"""A template of the director, as the core has it."""


def specification(size: int) -> MapSpec:
    """Return the map ``templates`` for a director's table of `size` entries."""
    key, value = layout.TEMPLATE_KEY.size, layout.TEMPLATE.size
    return MapSpec("templates", MapType.HASH, key, value, size, MapFlags.NO_PREALLOC)


class TemplateRestorer(Protocol):
    """What enters templates into a director."""

    def template(
        self,
        server: Any,
        protocol: int,
        key: bytes,
        dport: int,
        deadline: float,
        timeout_s: float,
        assured: bool,
    ) -> Template | None:
        """Enter a template; None where it cannot be."""


class Templates:
    """Writes templates down.

    Args:
        map_: ``templates``.
        table: the director's.
    """

    def __init__(self, map_: Map, table: Any) -> None:
        self._map = map_
        self._table = table
        self._watched: set[Any] = set()
        self._touched: list[Any] = []  # connections
        self._full = False

    def watch(self, services: Iterable[Any]) -> None:
        """Hear of the connections of persistent services."""
        there = set(services)
        for service in there - self._watched:
            if service.settings.persistence_s:
                self._watched.add(service)
                service.opened += (self._opened,)
                service.state_changed += (self._advanced,)
        self._watched &= there

    def _opened(self, connection: Any) -> None:
        self._touched.append(connection)  # it gets its template in a moment

    def _advanced(self, connection: Any, old: str, new: str) -> None:
        if connection.template is not None and connection.template.assured:
            self._touched.append(connection)

    def flush(self) -> None:
        """Write down what has been touched: before a packet leaves, or a slot is written, by it."""
        if not self._touched:
            return
        touched, self._touched = self._touched, []
        templates = {each.template: None for each in touched if each.template is not None}
        self.write([each for each in templates if each not in self._table.retired])

    def write(self, templates: list[Template]) -> None:
        """Write templates down."""
        if not templates:
            return
        keys, values = b"".join(map(_key, templates)), b"".join(map(_value, templates))
        try:
            try:
                self._map.update_batch(keys, values)
            except BpfError:
                self._sweep()
                self._map.update_batch(keys, values)
        except BpfError as err:
            if not self._full:
                self._full = True
                _log.warning("templates of persistence would not survive a crash: %s", err)

    def ended(self, template: Template) -> None:
        """Forget a template."""
        self._map.delete(_key(template))

    def _sweep(self) -> None:
        """Forget all that the director no longer has."""
        there = {_key(each) for kept in self._table.templates.values() for each in kept.values()}
        for key in [key for key, _ in self._map.items() if key not in there]:
            self._map.delete(key)

    def restore(self, restorer: TemplateRestorer, servers: Mapping[Name, Any]) -> int:
        """Bring back what is written down; return how many.

        Those whose time is over come back too: connections may hang on them, whom they outlive.
        """
        restored = 0
        known: dict[bytes, tuple[Any, bool, int]] = {}
        stale = []
        rows = (
            row
            for keys, values in self._map.lookup_batch()
            for row in zip(
                layout.TEMPLATE_KEY.iter_unpack(keys), _HALVES.iter_unpack(values), strict=True
            )
        )
        for (protocol, size, flow), (which, deadline, timeout) in rows:
            if which not in known:
                known[which] = self._read(which, servers)
            server, assured, dport = known[which]
            template, key = None, flow[:size]
            if server is not None:
                template = restorer.template(
                    server, protocol, key, dport, deadline, timeout, assured
                )
            if template is None:
                stale.append(layout.TEMPLATE_KEY.pack(protocol, size, flow))
            else:
                restored += 1
        for each in stale:
            self._map.delete(each)
        return restored

    @staticmethod
    def _read(which: bytes, servers: Mapping[Name, Any]) -> tuple[Any, bool, int]:
        """Return the server, whether it is assured, and the port, of the first half of a value."""
        *fields, dport, _, _ = layout.TEMPLATE.unpack(which.ljust(layout.TEMPLATE.size, b"\0"))
        assured = bool(fields[6] & TemplateFlag.ASSURED)
        return servers.get(Name.read(tuple(fields))), assured, dport


def _key(template: Template) -> bytes:
    return layout.TEMPLATE_KEY.pack(template.protocol, len(template.key), template.key)


def _value(template: Template) -> bytes:
    flags = TemplateFlag.ASSURED if template.assured else 0
    fields = Name.of(template.server).fields(flags)
    return layout.TEMPLATE.pack(*fields, template.dport, template.deadline, template.timeout)
