"""Settings as the director has them: their defaults, what they mean, and whose they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from director_world import (
    CLIENT,
    METHODS,
    ONE,
    TWO,
    VIP,
    WEB,
    World,
    Wrapping,
    address,
    target,
)
from kernel_tables import SETTINGS, TIMEOUTS

from lvskit import (
    NOT_OURS,
    SCTP,
    TCP,
    UDP,
    ConfigError,
    Drop,
    ForwarderSpec,
    Reason,
    Route,
    ServerSettings,
    ServiceKey,
    UnknownPlugin,
)
from lvskit.core import states
from lvskit.core.rules import KERNEL, Rules
from lvskit.errors import ServiceNotFound
from lvskit.settings import NAMES, Settings, check_settings, merged
from lvskit.testing import packets

DNS = ServiceKey.of(UDP, address(VIP), 53)


def rules(free: int = 2**31, **changes: int) -> Rules:
    return Rules(merged(Settings(), changes), free)


def kept(made: Rules) -> dict[tuple[int, str], float]:
    """Return seconds by protocol and name of the state."""
    return {
        (protocol, name): seconds
        for protocol, machine in made.machines.items()
        for name, seconds in zip(machine.tables.names, machine.timeouts, strict=True)
    }


# --- names and values ---


def test_the_defaults_are_the_kernels() -> None:
    wanted = SETTINGS | {name: seconds for name, (_, _, seconds) in TIMEOUTS.items()}
    assert dataclasses.asdict(Settings()) == wanted
    assert list(NAMES) == list(wanted)
    assert kept(KERNEL) == {(p, state): float(s) for p, state, s in TIMEOUTS.values()}


@pytest.mark.parametrize("name", TIMEOUTS)
def test_each_timeout_is_that_of_its_state_alone(name: str) -> None:
    protocol, state, _ = TIMEOUTS[name]
    made = rules(**{name: 7})
    assert kept(made) == kept(KERNEL) | {(protocol, state): 7.0}
    assert made.machines == {TCP: made.tcp, UDP: made.udp, SCTP: made.sctp}


def allowed(name: str) -> tuple[int, int]:
    """Return the range: of 32 bits, as the kernel's switches, but for defences and timeouts."""
    if name in ("drop_entry", "drop_packet", "secure_tcp"):
        return 0, 3
    return (1, 31 * 24 * 3600) if name in TIMEOUTS else (-(2**31), 2**31 - 1)


@pytest.mark.parametrize("name", [*SETTINGS, *TIMEOUTS])
def test_values_have_a_range(name: str) -> None:
    low, high = allowed(name)
    check_settings({name: low})
    check_settings({name: high})
    check_settings({name: None})
    for wrong in (low - 1, high + 1, True, 1.0, "1"):
        given: Any = {"drop_entry": 1, name: wrong}
        with pytest.raises(ConfigError) as caught:
            check_settings(given)
        assert str(caught.value) == f"setting {name} = {wrong!r}; allowed: {low} to {high}"


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings({"drop_entry": 1, "drop_entries": None})
    wanted = f"unknown setting 'drop_entries'; allowed: {', '.join([*SETTINGS, *TIMEOUTS])}"
    assert str(caught.value) == wanted


def test_merged_leaves_its_base_alone() -> None:
    base = Settings(sloppy_tcp=1)
    assert merged(base, {"pmtu_disc": 0}) == Settings(sloppy_tcp=1, pmtu_disc=0)
    assert base == Settings(sloppy_tcp=1)


# --- what they mean: the defences and the free entries ---

# Mode and free entries, where the threshold is 100: is the defence on?
MODES = [
    (0, 0, False),
    (1, 0, True),
    (1, 99, True),
    (1, 100, False),
    (2, 99, True),
    (2, 100, False),
    (3, 0, True),
    (3, 2**31, True),
]


@pytest.mark.parametrize(("mode", "free", "on"), MODES)
def test_a_mode_and_the_free_entries_switch_a_defence_on(mode: int, free: int, on: bool) -> None:
    assert rules(free, drop_entry=mode, amemthresh=100).drop_entry is on
    made = rules(free, secure_tcp=mode, amemthresh=100)
    assert made.tcp.tables is (states.TCP_SECURE if on else states.TCP)
    assert made.steady is (states.STEADY_SECURE if on else states.STEADY)
    assert (rules(free, drop_packet=mode, amemthresh=100).drop_rate > 0) is on


@pytest.mark.parametrize("defence", ["drop_entry", "drop_packet", "secure_tcp"])
def test_only_modes_1_and_2_go_by_the_free_entries(defence: str) -> None:
    assert [rules(**{defence: mode}).automatic for mode in range(4)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("mode", "free", "rate"),
    [(0, 0, 0), (3, 0, 17), (3, 1000, 17), (1, 100, 0), (1, 99, 100), (1, 98, 50), (2, 66, 2),
     (2, 51, 2), (1, 50, 2), (1, 49, 1), (2, 0, 1)],
)  # fmt: skip
def test_the_rate_of_dropped_packets(mode: int, free: int, rate: int) -> None:
    """Linux ip_vs_ctl.c, update_defense_level: threshold / (threshold - available)."""
    assert rules(free, drop_packet=mode, amemthresh=100, am_droprate=17).drop_rate == rate


def test_a_threshold_of_0_never_switches_anything_on() -> None:
    made = rules(0, drop_entry=1, drop_packet=2, secure_tcp=1, amemthresh=0)
    assert (made.drop_entry, made.drop_rate, made.steady) == (False, 0, states.STEADY)


# --- whose they are ---


def opens(world: World, port: int) -> bool:
    """Whether a packet without SYN opens a connection to this port: sloppy_tcp."""
    return world.receive(packets.tcp(CLIENT, 1, VIP, port, "A")) != NOT_OURS


def test_a_services_own_value_outranks_the_directors() -> None:
    world = World()
    web, other, late = (ServiceKey.of(TCP, address(VIP), port) for port in (80, 81, 82))
    world.serve(web, ONE)
    world.serve(other, ONE)

    def sloppy() -> list[int]:
        return [service.rules.settings.sloppy_tcp for service in world.director.services]

    assert sloppy() == [0, 0]
    world.tune(sloppy_tcp=1)
    assert sloppy() == [1, 1]
    world.tune(web, sloppy_tcp=0)
    assert sloppy() == [0, 1]
    world.serve(late, ONE)
    assert sloppy() == [0, 1, 1]
    assert [opens(world, port) for port in (80, 81, 82)] == [False, True, True]
    world.tune(sloppy_tcp=None)
    assert sloppy() == [0, 0, 0]
    world.tune(other, sloppy_tcp=5)
    world.tune(web, sloppy_tcp=None, pmtu_disc=0)
    assert sloppy() == [0, 5, 0]
    world.tune(sloppy_tcp=1)
    assert sloppy() == [1, 5, 1]
    world.tune(web, sloppy_tcp=None)  # said twice
    assert [s.rules.settings.pmtu_disc for s in world.director.services] == [0, 1, 1]
    assert world.director.defaults == {"sloppy_tcp": 1}
    assert world.director.services.get(other).overrides == {"sloppy_tcp": 5}
    assert world.director.rules.settings == Settings(sloppy_tcp=1)


def test_servers_have_their_services_settings_whenever_they_came() -> None:
    world = World()
    service = world.serve(WEB, ONE)
    world.tune(WEB, timeout_established=50)
    world.director.add_server(WEB, TWO, None, ServerSettings())
    assert {server.rules for server in service.servers} == {service.rules}
    assert service.rules.tcp.timeouts[states.ESTABLISHED] == 50.0
    assert world.director.rules is not service.rules


def test_a_services_own_value_is_no_occasion_to_bind_the_others() -> None:
    world = World()
    world.serve(WEB, ONE)
    other = world.serve(DNS, ONE)
    bound = other.rules
    world.tune(WEB, timeout_established=50)
    assert other.rules is world.director.rules is bound


def test_a_service_that_is_removed_takes_its_values_with_it() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.tune(sloppy_tcp=1)
    world.tune(WEB, sloppy_tcp=0, timeout_established=50)
    world.director.remove_service(WEB, 0.0)
    again = world.serve(WEB, ONE)
    assert again.overrides == {}
    assert again.rules.settings == Settings(sloppy_tcp=1)
    assert again.servers[0].rules is again.rules


def test_a_timeout_is_for_the_next_packet_of_each_connection() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.serve(DNS, ONE)
    world.tcps("SA")
    world.receive(packets.udp(CLIENT, 9, VIP, 53))
    world.tune(timeout_established=40, timeout_udp=30)
    world.tune(DNS, timeout_udp=20)
    assert [c.deadline for c in world.connections] == [900.0, 300.0]
    world.tcp("A", now=5.0)
    world.receive(packets.udp(CLIENT, 9, VIP, 53), 5.0)
    assert [c.deadline for c in world.connections] == [45.0, 25.0]
    assert world.director.next_timer() == 25.0
    world.tune(timeout_established=None)
    world.tune(DNS, timeout_udp=None)
    world.tcp("A", now=6.0)
    world.receive(packets.udp(CLIENT, 9, VIP, 53), 6.0)
    assert [c.deadline for c in world.connections] == [906.0, 36.0]


def test_a_removed_servers_connections_follow_the_settings_too() -> None:
    """Of the service that is there by its key, if there is one; else the director's."""
    world = World()
    service = world.serve(WEB, ONE)
    world.serve(DNS, ONE)
    world.tcps("SA")
    server = service.servers[0]
    world.director.remove_server(WEB, ONE, None, 0.0)
    world.tune(WEB, timeout_close=5)
    assert server.rules is service.rules
    world.director.remove_service(WEB, 0.0)
    world.tune(timeout_udp=7)
    assert server.rules is world.director.rules
    assert world.tcp("A", now=1.0) == Drop(Reason.SERVER_REMOVED)
    world.tune(expire_nodest_conn=1)
    assert world.tcp("A", now=1.0) == NOT_OURS
    assert [connection.deadline for connection in world.connections] == [1.004]


def test_what_is_refused_changes_nothing() -> None:
    world = World(forwarders={})
    world.serve(WEB, ONE)
    before = world.director.rules, world.director.services.get(WEB).rules
    with pytest.raises(ConfigError, match="unknown setting 'sloppy'"):
        world.tune(sloppy_tcp=1, sloppy=1)
    with pytest.raises(ConfigError, match="allowed: 0 to 3"):
        world.tune(WEB, sloppy_tcp=1, drop_entry=4)
    with pytest.raises(ServiceNotFound):
        world.tune(DNS, sloppy_tcp=1)
    with pytest.raises(UnknownPlugin) as caught:
        world.tune(WEB, sloppy_tcp=1, cache_bypass=1)
    assert caught.value.name == "droute"
    assert (world.director.rules, world.director.services.get(WEB).rules) == before
    assert world.director.defaults == world.director.services.get(WEB).overrides == {}
    world.tune(WEB, cache_bypass=0)  # nothing is needed for that
    world.tune(cache_bypass=None)


# --- the setting that forwarders read ---


def test_a_forwarder_hears_of_pmtu_disc_by_its_route() -> None:
    world = World()
    service = world.serve(WEB, ONE, method="wrap")
    other = world.serve(ServiceKey.of(TCP, address(VIP), 81), ONE, method="wrap")
    made, beside = (s.servers[0].forwarders["wrap"] for s in (service, other))
    assert isinstance(made, Wrapping)
    assert isinstance(beside, Wrapping)
    assert made.discoveries == beside.discoveries == [True]
    world.tune(WEB, pmtu_disc=0)
    assert (made.discoveries, beside.discoveries) == ([True, False], [True])
    assert (service.servers[0].pmtu_disc, other.servers[0].pmtu_disc) == (False, True)
    world.tune(pmtu_disc=1, sloppy_tcp=1)  # no news to either
    assert (made.discoveries, beside.discoveries) == ([True, False], [True])
    world.tune(WEB, pmtu_disc=None)
    assert made.discoveries == [True, False, True]
    world.tune(pmtu_disc=0)
    assert (made.discoveries, beside.discoveries) == ([True, False, True, False], [True, False])


def test_a_forwarder_that_fails_over_a_setting_is_reported_and_kept() -> None:
    class Stubborn(Wrapping):
        def route_changed(self, route: Route) -> None:
            if not self.server.pmtu_disc:
                raise RuntimeError("never")
            super().route_changed(route)

    wrap = ForwarderSpec(name="wrap", factory=Stubborn, summary="-")
    world = World(forwarders={**METHODS, "wrap": wrap})
    world.serve(WEB, ONE, method="wrap")
    world.serve(DNS, TWO)
    world.tune(pmtu_disc=0)
    (fault,) = world.faults
    assert fault.plugin == "wrap"
    assert "forwarder 'wrap' of 192.168.1.11:80 failed: RuntimeError('never')" in str(fault)
    assert world.tcp().packet[16:20] == ONE  # type: ignore[union-attr]
    assert target(world.receive(packets.udp(CLIENT, 1, VIP, 53))) == TWO
