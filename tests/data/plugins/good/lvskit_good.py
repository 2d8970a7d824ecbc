"""A sound plugin: a scheduler with options, a forwarder, an observer, and every notification."""

from dataclasses import dataclass

import lvskit

HEARD: list[tuple[object, ...]] = []


@dataclass(frozen=True)
class Options:
    nth: int = 0
    sticky: bool = False

    def __post_init__(self):
        if self.nth < 0:
            raise ValueError(f"nth {self.nth}; allowed: 0 or more")


class Nth(lvskit.SchedulerBase):
    def __init__(self, servers, options):
        super().__init__(servers, options)
        self.nth = options.nth

    def schedule(self, flow):
        return self.servers[self.nth] if self.nth < len(self.servers) else None


class Discard:
    def __init__(self, server, options):
        pass

    def transmit(self, connection, packet):
        return lvskit.Drop(lvskit.Reason.MALFORMED)

    def route_changed(self, route):
        pass


class Watch:
    def opened(self, connection):
        HEARD.append(("opened", connection.flow.cport))

    def state_changed(self, connection, old, new):
        HEARD.append(("state_changed", old, new))

    def closed(self, connection, reason):
        HEARD.append(("closed", reason))


@lvskit.hookimpl
def lvskit_register_schedulers():
    return [
        lvskit.SchedulerSpec(
            name="nth", factory=Nth, options=Options, flags=("sticky",), summary="the nth server"
        )
    ]


@lvskit.hookimpl
def lvskit_register_forwarders():
    return [lvskit.ForwarderSpec(name="discard", factory=Discard, summary="no server at all")]


@lvskit.hookimpl
def lvskit_register_datapaths():
    return [lvskit.DatapathSpec(name="pigeon", factory=print, summary="by carrier pigeon")]


@lvskit.hookimpl
def lvskit_register_decapsulators():
    return [lvskit.DecapsulatorSpec(name="straw", factory=print, summary="through a straw")]


@lvskit.hookimpl
def lvskit_connection_observer(service):
    return Watch()


@lvskit.hookimpl
def lvskit_service_added(service):
    HEARD.append(("service_added", service.name))


@lvskit.hookimpl
def lvskit_service_changed(service):
    HEARD.append(("service_changed", service.name))


@lvskit.hookimpl
def lvskit_service_removed(service):
    HEARD.append(("service_removed", service.name))


@lvskit.hookimpl
def lvskit_server_added(service, server):
    HEARD.append(("server_added", service.name, server.name))


@lvskit.hookimpl
def lvskit_server_changed(server):
    HEARD.append(("server_changed", server.name, server.weight))


@lvskit.hookimpl
def lvskit_server_removed(service, server):
    HEARD.append(("server_removed", service.name, server.name))
