"""Every hook of lvskit. A plugin implements those it needs, marked with `lvskit.hookimpl`.

Hooks serve the control plane: they hand over records at load and hear of services and servers
coming and going. No hook is ever called for a packet. Arguments may be left out of an
implementation, and take no defaults.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from lvskit.interfaces import ConnectionObserver, RealServer, VirtualService
from lvskit.records import DatapathSpec, DecapsulatorSpec, ForwarderSpec, SchedulerSpec

hookspec = pluggy.HookspecMarker("lvskit")
hookimpl = pluggy.HookimplMarker("lvskit")


@hookspec
def lvskit_register_schedulers() -> Iterable[SchedulerSpec]:
    """Return the schedulers of this plugin.

    Called once, at load. Two plugins that register one name are an error naming both.

    Example::

        @lvskit.hookimpl
        def lvskit_register_schedulers():
            return [lvskit.SchedulerSpec(name="first", factory=First, summary="always the first")]

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def lvskit_register_forwarders() -> Iterable[ForwarderSpec]:
    """Return the forwarding methods of this plugin.

    Called once, at load.

    Example::

        @lvskit.hookimpl
        def lvskit_register_forwarders():
            return [lvskit.ForwarderSpec(name="tunnel", factory=Tunnel, summary="IPIP")]

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def lvskit_register_datapaths() -> Iterable[DatapathSpec]:
    """Return the datapaths of this plugin.

    Called once, at load.

    Example::

        @lvskit.hookimpl
        def lvskit_register_datapaths():
            return [lvskit.DatapathSpec(name="mine", factory=Mine, summary="by carrier pigeon")]

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def lvskit_register_decapsulators() -> Iterable[DecapsulatorSpec]:
    """Return what this plugin has to take packets out of tunnels on real servers.

    Called once, at load.

    Example::

        @lvskit.hookimpl
        def lvskit_register_decapsulators():
            return [lvskit.DecapsulatorSpec(name="mine", factory=Mine, summary="by a smart card")]

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def lvskit_connection_observer(service: VirtualService) -> ConnectionObserver | None:
    """Return an object that follows the connections of `service`, or None.

    Called once per service, when it is added; the object's methods are bound then and called
    directly, so an observer costs 55 ns per event and none costs nothing. An exception from it
    is reported, and the packet goes on.

    Example::

        class Log:
            def opened(self, connection):
                print("new:", connection.flow)

        @lvskit.hookimpl
        def lvskit_connection_observer(service):
            return Log()

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def lvskit_service_added(service: VirtualService) -> None:
    """Hear that `service` was added. An exception is reported and changes nothing.

    Example::

        @lvskit.hookimpl
        def lvskit_service_added(service):
            print("serving", service.name)

    .. versionadded:: 0.1
    """


@hookspec
def lvskit_service_changed(service: VirtualService) -> None:
    """Hear that `service` was edited (scheduler, persistence, flags).

    Example::

        @lvskit.hookimpl
        def lvskit_service_changed(service):
            print("edited", service.name)

    .. versionadded:: 0.1
    """


@hookspec
def lvskit_service_removed(service: VirtualService) -> None:
    """Hear that `service` was removed; its servers were announced before it.

    Example::

        @lvskit.hookimpl
        def lvskit_service_removed(service):
            print("gone", service.name)

    .. versionadded:: 0.1
    """


@hookspec
def lvskit_server_added(service: VirtualService, server: RealServer) -> None:
    """Hear that `server` was added to `service`.

    Example::

        @lvskit.hookimpl
        def lvskit_server_added(service, server):
            print(server.name, "joins", service.name)

    .. versionadded:: 0.1
    """


@hookspec
def lvskit_server_changed(service: VirtualService, server: RealServer) -> None:
    """Hear that `server` was edited (weight, thresholds, forwarding method).

    Example::

        @lvskit.hookimpl
        def lvskit_server_changed(service, server):
            print(server.name, "now has weight", server.weight)

    .. versionadded:: 0.1
    """


@hookspec
def lvskit_server_removed(service: VirtualService, server: RealServer) -> None:
    """Hear that `server` was removed from `service`.

    Example::

        @lvskit.hookimpl
        def lvskit_server_removed(service, server):
            print(server.name, "leaves", service.name)

    .. versionadded:: 0.1
    """
