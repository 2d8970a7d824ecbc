"""Virtual services and real servers: what they are called, what they refuse, what they count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvskit import (
    TCP,
    UDP,
    ConfigError,
    Counters,
    Director,
    Route,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    load_plugins,
)
from lvskit.core.service import RealServer, VirtualService
from lvskit.core.services import ServiceTable
from lvskit.errors import NotUnicast, OutOfRange, ServerNotFound, ServiceExists, ServiceNotFound
from lvskit.settings import check_address, endpoint
from lvskit.testing.packets import address

VIP, VIP6 = address("192.168.1.176"), address("2001:db8::176")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (ServiceKey.of(TCP, VIP, 80), "TCP 192.168.1.176:80"),
        (ServiceKey.of(UDP, VIP6, 0), "UDP [2001:db8::176]:0"),
        (ServiceKey.mark(7), "FWM 7"),
        (ServiceKey.mark(2**32 - 1, version=6), "FWM 4294967295 IPv6"),
    ],
)
def test_names(key: ServiceKey, name: str) -> None:
    service = VirtualService(key)
    assert str(key) == service.name == name
    assert (service.protocol, service.address) == (key.protocol, key.address)
    assert (service.port, service.fwmark) == (key.port, key.fwmark)


def test_the_version_is_the_addresss() -> None:
    assert (ServiceKey.of(TCP, VIP, 80).version, ServiceKey.of(TCP, VIP6, 80).version) == (4, 6)
    assert ServiceKey.mark(1).version == 4
    assert endpoint(VIP6, 80) == "[2001:db8::176]:80"


@pytest.mark.parametrize(
    ("error", "make"),
    [
        (ConfigError, lambda: ServiceKey.of(50, VIP, 80)),
        (ConfigError, lambda: ServiceKey.of(TCP, VIP + b"1", 80)),
        (ConfigError, lambda: ServiceKey.of(TCP, b"", 80)),
        (OutOfRange, lambda: ServiceKey.of(TCP, VIP, -1)),
        (OutOfRange, lambda: ServiceKey.of(TCP, VIP, 65536)),
        (OutOfRange, lambda: ServiceKey.mark(0)),
        (OutOfRange, lambda: ServiceKey.mark(2**32)),
        (OutOfRange, lambda: ServerSettings(weight=-1).check("x")),
        (OutOfRange, lambda: ServerSettings(weight=2**31).check("x")),
        (OutOfRange, lambda: ServerSettings(upper=-1).check("x")),
        (OutOfRange, lambda: ServerSettings(upper=2**31).check("x")),
        (OutOfRange, lambda: ServerSettings(upper=5, lower=6).check("x")),
        (OutOfRange, lambda: ServerSettings(lower=1).check("x")),
        (OutOfRange, lambda: ServerSettings(upper=5, lower=-1).check("x")),
    ],
)
def test_values_that_cannot_be(error: type[Exception], make: Callable[[], object]) -> None:
    with pytest.raises(error):
        make()


@pytest.mark.parametrize(
    "settings",
    [
        ServerSettings(),
        ServerSettings(weight=0),
        ServerSettings(weight=2**31 - 1, upper=2**31 - 1, lower=2**31 - 1),
        ServerSettings(upper=5, lower=5),
        ServerSettings(upper=5),
    ],
)
def test_values_at_the_edge(settings: Any) -> None:
    settings.check("x")
    assert ServiceKey.of(TCP, VIP, 65535).port == 65535


@pytest.mark.parametrize(
    ("text", "unicast"),
    [
        ("192.168.1.11", True),
        ("127.0.0.1", True),
        ("1.0.0.0", True),
        ("0.0.0.0", False),
        ("0.1.2.3", True),
        ("224.0.0.1", False),
        ("239.255.255.255", False),
        ("255.255.255.255", False),
        ("255.255.255.254", True),
        ("2001:db8::11", True),
        ("::1", True),
        ("::2", True),
        ("::", False),
        ("ff02::1", False),
        ("fe80::11", False),
        ("::ffff:192.168.1.11", False),
    ],
)
def test_addresses_of_real_servers(text: str, unicast: bool) -> None:
    if unicast:
        check_address(address(text))
    else:
        with pytest.raises(NotUnicast, match="not unicast"):
            check_address(address(text))


# --- thresholds ---


@given(
    upper=st.integers(0, 12),
    lower=st.integers(0, 12),
    steps=st.lists(st.sampled_from(["take", "take", "release"]), max_size=60),
)
def test_overload_begins_at_the_upper_threshold_and_ends_below_the_lower_one(
    upper: int, lower: int, steps: list[Any]
) -> None:
    """Without a lower one: below three quarters of the upper. Exact, also where 4 is no divisor."""
    lower = min(lower, upper)
    server = RealServer(VirtualService(ServiceKey.of(TCP, VIP, 80)), VIP, 80)
    server.apply(ServerSettings(upper=upper, lower=lower))
    overloaded = False
    for step in steps:
        count = server.activeconns + server.inactconns
        if step == "take":
            server.inactconns += 1
            server.take()
            overloaded = overloaded or (upper > 0 and count + 1 >= upper)
        elif count:
            if server.inactconns:
                server.inactconns -= 1
            else:
                server.activeconns -= 1
            server.release()
            overloaded = overloaded and count - 1 >= (lower or upper * 0.75)
        if server.inactconns > 2:  # some become active; that changes nothing
            server.inactconns -= 1
            server.activeconns += 1
        assert server.overloaded == overloaded
        assert server.referenced == (server.activeconns + server.inactconns > 0)


@pytest.mark.parametrize(
    ("upper", "lower", "overloaded"),
    [
        (0, 0, False),  # no limit any more
        (4, 0, True),  # what it was
        (3, 0, True),
        (9, 0, True),  # as many as there are
        (10, 0, True),  # between the two: as it was
        (12, 0, True),
        (13, 0, False),  # fewer than three quarters, which are 10
        (20, 9, True),
        (20, 10, False),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_an_edit_of_thresholds_judges_overload_anew(
    upper: int, lower: int, overloaded: bool, before: bool
) -> None:
    server = RealServer(VirtualService(ServiceKey.of(TCP, VIP, 80)), VIP, 80)
    server.apply(ServerSettings(upper=4, weight=3))
    server.activeconns, server.overloaded = 9, before
    server.apply(ServerSettings(upper=upper, lower=lower, weight=8))
    judged = (upper, lower) != (4, 0)
    always = judged and 0 < upper <= 9
    assert server.overloaded == (always or (before and overloaded))
    assert (server.weight, server.last_weight) == (8, 8)


def test_the_last_weight_is_that_before_quiescing_unless_it_came_quiesced() -> None:
    service = VirtualService(ServiceKey.of(TCP, VIP, 80))
    server = RealServer(service, VIP, 80)
    seen = []
    for weight in (3, 0, 5, 0):
        server.apply(ServerSettings(weight=weight))
        seen.append(server.last_weight)
    assert seen == [3, 3, 5, 5]
    service.attach(server)
    assert server.last_weight == 0


# --- counters ---


def test_a_services_counters_are_those_of_its_servers_while_they_were_there(
    service: VirtualService,
) -> None:
    one, two = (RealServer(service, bytes([10, 0, 0, n]), 80) for n in (1, 2))
    one.counters.conns = 100  # from another life
    service.attach(one)
    service.attach(two)
    assert service.counters == Counters()
    one.counters.conns += 1
    two.counters.inpkts += 5
    assert service.counters == Counters(conns=1, inpkts=5)
    service.detach(one)
    assert service.counters == Counters(conns=1, inpkts=5)
    service.attach(one)
    one.counters.conns += 1
    assert service.counters == Counters(conns=2, inpkts=5)
    assert service.servers == [one, two]
    assert service.find(bytes([10, 0, 0, 2]), 80) is two


def test_a_server_is_found_by_address_and_port(service: VirtualService, server: RealServer) -> None:
    assert service.find(server.address, 80) is server
    for wanted in ((server.address, 81), (bytes([192, 168, 1, 12]), 80)):
        with pytest.raises(ServerNotFound, match=r"there are: 192\.168\.1\.11:80"):
            service.find(*wanted)
    service.detach(server)
    with pytest.raises(ServerNotFound, match="there are: none"):
        service.find(server.address, 80)


def test_the_total_outlives_services(service: VirtualService, server: RealServer) -> None:
    table = ServiceTable()
    table.add(service)
    with pytest.raises(ServiceExists, match=r"TCP .*:80 exists"):
        table.add(VirtualService(service.key))
    server.counters.inbytes = 7
    assert table.counters == Counters(inbytes=7)
    service.detach(server)
    table.remove(service)
    assert (len(table), list(table)) == (0, [])
    assert table.counters == Counters(inbytes=7)
    with pytest.raises(ServiceNotFound):
        table.get(service.key)


def test_a_loop_over_services_may_remove_them(service: VirtualService) -> None:
    table = ServiceTable()
    table.add(service)
    table.add(VirtualService(ServiceKey.mark(1)))
    for one in table:
        table.remove(one)
    assert len(table) == 0


@pytest.mark.parametrize("port", [-1, 65536, 70000])
def test_a_server_port_beyond_all_ports_is_refused(port) -> None:
    director = Director(load_plugins(strict=True), lambda _: Route(VIP, 1500))
    key = ServiceKey.mark(7)
    director.add_service(key, ServiceSettings(scheduler="rr"))
    with pytest.raises(OutOfRange, match=f"port {port}; allowed"):
        director.add_server(key, bytes([192, 168, 1, 11]), port, ServerSettings())
    with pytest.raises(ConfigError, match="address of 5 bytes"):
        director.add_server(key, bytes(5), 80, ServerSettings())
    assert not director.services.get(key).servers
