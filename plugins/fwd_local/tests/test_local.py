"""A server on the director itself gets its packets untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import lvskit_fwd_local
import pytest

from lvskit import (
    DELIVER,
    TCP,
    UDP,
    Deliver,
    Director,
    Flow,
    RealServer,
    Route,
    SchedulerBase,
    SchedulerSpec,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    hookimpl,
    load_plugins,
)
from lvskit.plugins import Source
from lvskit.testing import packets
from lvskit.testing.packets import address

HERE = address("192.168.1.175")


class FirstServer:
    """A plugin whose scheduler always takes the first server, so that none need be installed."""

    class Scheduler(SchedulerBase):
        def schedule(self, flow: Flow) -> RealServer:
            return self.servers[0]

    @hookimpl
    def lvskit_register_schedulers(self) -> Iterable[SchedulerSpec]:
        return [SchedulerSpec(name="first", factory=self.Scheduler, summary="the first server")]


def director(protocol: int, vip: str, method: str, *, local: bool) -> Director:
    """Return a director with one service and one server."""
    plugins = load_plugins()
    plugins.add(FirstServer(), Source("first", "lvskit-test", "1"))
    made = Director(plugins, lambda target: Route(HERE, 1500, local=local))
    key = ServiceKey.of(protocol, address(vip), 80)
    made.add_service(key, ServiceSettings(scheduler="first"))
    made.add_server(key, HERE, None, ServerSettings(method=method))
    return made


@pytest.mark.parametrize("ttl", [0, 1, 64])
@pytest.mark.parametrize(
    ("build", "client", "vip"),
    [
        (packets.tcp, "10.0.0.1", "192.168.1.176"),
        (packets.udp, "10.0.0.1", "192.168.1.176"),
        (packets.tcp, "2001:db8:1::1", "2001:db8::176"),
        (packets.udp, "2001:db8:1::1", "2001:db8::176"),
    ],
)
def test_every_packet_is_delivered_whatever_its_ttl_and_size(
    build: Callable[..., bytes], client: str, vip: str, ttl: int
) -> None:
    protocol = TCP if build is packets.tcp else UDP
    made = director(protocol, vip, "local", local=False)
    for size in (0, 60_000):
        verdict = made.receive(build(client, 1024, vip, 80, ttl=ttl, payload=bytes(size)), 0.0)
        assert verdict is DELIVER
    (service,) = made.services
    assert service.counters.inpkts == 2


def test_a_connection_stays_local_when_routes_change() -> None:
    client, vip = "10.0.0.1", "192.168.1.176"
    made = director(TCP, vip, "local", local=True)
    assert isinstance(made.receive(packets.tcp(client, 1, vip, 80), 0.0), Deliver)
    made.routes_changed()
    assert isinstance(made.receive(packets.tcp(client, 1, vip, 80, "A"), 1.0), Deliver)


def test_records() -> None:
    (spec,) = lvskit_fwd_local.lvskit_register_forwarders()
    assert (spec.name, spec.keeps_port, spec.options) == ("local", True, None)
    assert load_plugins().forwarder("local").factory is spec.factory
