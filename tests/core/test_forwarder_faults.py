"""A forwarder that fails while it is made or told of a route: an error, and nothing half done."""

from __future__ import annotations

import pytest

from lvskit import (
    DELIVER,
    TCP,
    Director,
    Drop,
    ForwarderSpec,
    PluginError,
    Reason,
    Route,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    load_plugins,
)
from lvskit.errors import ConfigError
from lvskit.plugins import Plugins, Source
from lvskit.testing import packets

SERVER = bytes([192, 168, 1, 11])
KEY = ServiceKey.of(TCP, bytes([192, 168, 1, 176]), 80)


class Fragile:
    """Fails when its time comes."""

    def __init__(self, server, options) -> None:
        if Fragile.fault == "made":
            raise RuntimeError("no luck")

    def transmit(self, connection, packet):
        return DELIVER

    def route_changed(self, route) -> None:
        if Fragile.fault == "routed":
            raise RuntimeError("no way")

    fault = ""


@pytest.fixture
def plugins() -> Plugins:
    class Plugin:
        from lvskit import hookimpl

        @hookimpl
        def lvskit_register_forwarders(self):
            return [ForwarderSpec(name="fragile", factory=Fragile, summary="breaks")]

    plugins = load_plugins(strict=True)
    plugins.add(Plugin(), Source("fragile", "lvskit-fragile", "1"))
    return plugins


@pytest.mark.parametrize("fault", ["made", "routed"])
def test_a_server_is_not_added_when_its_forwarder_fails(plugins, monkeypatch, fault) -> None:
    monkeypatch.setattr(Fragile, "fault", fault)
    director = Director(plugins, lambda address: Route(SERVER, 1500))
    service = director.add_service(KEY, ServiceSettings(scheduler="rr"))
    with pytest.raises(ConfigError, match=r"forwarder 'fragile' of 192\.168\.1\.11:80 failed"):
        director.add_server(KEY, SERVER, None, ServerSettings(method="fragile"))
    assert not service.servers


def test_a_forwarder_that_fails_on_a_new_route_keeps_what_it_had(plugins, monkeypatch) -> None:
    reports: list[PluginError] = []
    routes = [Route(SERVER, 1500)]
    director = Director(plugins, lambda address: routes[0], report=reports.append)
    director.add_service(KEY, ServiceSettings(scheduler="rr"))
    server = director.add_server(KEY, SERVER, None, ServerSettings(method="fragile"))
    before = server.route, server.transmit
    monkeypatch.setattr(Fragile, "fault", "routed")
    routes[0] = Route(SERVER, 1400)
    director.routes_changed()
    assert (server.route, server.transmit) == before
    assert [error.plugin for error in reports] == ["fragile"]


@pytest.mark.parametrize("answer", [None, b"junk", 0, Drop])
def test_what_is_no_verdict_costs_one_packet(plugins, monkeypatch, answer) -> None:
    monkeypatch.setattr(Fragile, "transmit", lambda self, connection, packet: answer)
    reports: list[PluginError] = []
    director = Director(plugins, lambda address: Route(SERVER, 1500), report=reports.append)
    director.add_service(KEY, ServiceSettings(scheduler="rr"))
    director.add_server(KEY, SERVER, None, ServerSettings(method="fragile"))
    syn = packets.tcp("10.0.0.1", 1024, KEY.address, 80)
    assert director.receive(syn, 0.0) == Drop(Reason.PLUGIN_FAULT)
    assert [str(error) for error in reports] == [
        f"forwarder 'fragile' of 192.168.1.11:80 returned {answer!r}, which is no verdict"
    ]
    (connection,) = director.table
    assert connection.state_name == "SYN_RECV"
    assert director.next_timer() == 60.0


@pytest.mark.parametrize(("version", "address"), [(4, bytes(15) + b"\2"), (6, SERVER)])
def test_a_method_may_need_a_server_of_the_services_ip_version(version, address) -> None:
    plugins = load_plugins(strict=True)

    class Plugin:
        from lvskit import hookimpl

        @hookimpl
        def lvskit_register_forwarders(self):
            spec = ForwarderSpec(name="alike", factory=Fragile, summary="-", same_version=True)
            return [spec]

    plugins.add(Plugin(), Source("alike", "lvskit-alike", "1"))
    director = Director(plugins, lambda address: Route(address, 1500))
    key = ServiceKey.mark(7, version)
    service = director.add_service(key, ServiceSettings(scheduler="rr"))
    settings = ServerSettings(method="alike")
    with pytest.raises(ConfigError, match=f"'alike' needs an IPv{version} server, which .* is not"):
        director.add_server(key, address, None, settings)
    assert not service.servers
    other = SERVER if version == 4 else bytes(15) + b"\2"
    assert director.add_server(key, other, None, settings).address == other
