"""Whose packets the live datapath takes from the kernel, as services come and go."""

from __future__ import annotations

from lvskit import TCP, UDP, Director, ServerSettings, ServiceSettings, load_plugins
from lvskit.datapath.live.wants import Wants
from lvskit.settings import ServiceKey
from lvskit.testing import packets
from lvskit.types import Route

VIP = bytes((10, 0, 0, 2))
SERVER = bytes((10, 0, 0, 9))


def routes(address: bytes) -> Route:
    return Route(address, 1500)


def test_packets_of_a_removed_service_are_wanted_while_connections_live():
    director = Director(load_plugins(strict=True), routes)
    wants = Wants(director)
    web, other = ServiceKey.of(TCP, VIP, 80), ServiceKey.of(UDP, SERVER, 53)

    def keys() -> list[ServiceKey]:
        return [service.key for service in director.services]

    director.add_service(web, ServiceSettings(scheduler="rr"))
    director.add_server(web, SERVER, None, ServerSettings())
    wants.change(keys(), 0.0)
    director.receive(packets.tcp("10.0.0.1", 1, VIP, 80, "S"), 0.0)
    director.remove_service(web, 0.0)
    wants.change(keys(), 0.0)
    # Also if there has been no service at all meanwhile.
    director.add_service(other, ServiceSettings(scheduler="rr"))
    wants.change(keys(), 0.0)
    assert wants.claims().services == {web, other}
    director.expire(1000.0)
    assert wants.forget()
    assert wants.claims().services == {other}
