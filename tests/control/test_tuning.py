"""Settings from outside: read, changed, applied as a difference, and what defences do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvskit import ConfigError, Director, Route, UnknownPlugin, load_plugins
from lvskit.config.check import problems
from lvskit.config.model import Config, Service
from lvskit.control.api import Control
from lvskit.settings import NAMES, ServiceKey, Settings, plain
from lvskit.testing.packets import tcp
from lvskit.testing.strategies import TUNABLE, settings

HERE = bytes([192, 168, 1, 175])
VIP = "192.168.1.176"
WEB, MAIL = {"tcp": f"{VIP}:80"}, {"tcp": f"{VIP}:25"}
WEB_KEY = ServiceKey.of(6, bytes([192, 168, 1, 176]), 80)


class Machine:
    """A director with two services, the time, and its commands."""

    def __init__(self, size: int = 65536) -> None:
        self.now = 0.0
        plugins = load_plugins(strict=True)
        plugins.forwarders.pop("droute", None)
        self.director = Director(plugins, lambda address: Route(HERE, 1500), size=size)
        self.control = Control(self.director, plugins, lambda: self.now)
        for service in (WEB, MAIL):
            self.call("add_service", service=service)
            self.call("add_server", service=service, server={"address": "192.168.1.11"})

    def call(self, method: str, **params: Any) -> Any:
        return self.control.call(method, params)

    def set(self, service: dict[str, Any] | None = None, **values: int | None) -> None:
        params = {"service": service} if service else {}
        self.call("set_settings", settings=values, **params)

    def row(self, name: str, service: dict[str, Any] | None = None) -> tuple[int, str]:
        rows = self.call("settings", **({"service": service} if service else {}))
        row = next(row for row in rows if row["name"] == name)
        return row["value"], row["origin"]

    def apply(self, **config: Any) -> list[str]:
        done: list[str] = self.call("apply", config=config)
        return done

    def syn(self, number: int, port: int = 80) -> None:
        client = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        self.director.receive(tcp(client, 1024, VIP, port), self.now)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_nothing_is_set(machine: Machine) -> None:
    rows = machine.call("settings")
    assert [row["name"] for row in rows] == list(NAMES)
    for row in rows:
        default = getattr(Settings(), row["name"])
        assert (row["value"], row["default"], row["origin"]) == (default, default, "kernel")
        assert row["meaning"]
    assert machine.call("settings", service=WEB) == rows
    assert machine.call("config")["timeouts"] == {}
    assert "settings" not in machine.call("config")


def test_a_value_holds_for_whom_it_was_set(machine: Machine) -> None:
    machine.set(sloppy_tcp=1)
    machine.set(WEB, sloppy_tcp=0)
    assert machine.row("sloppy_tcp") == (1, "director")
    assert machine.row("sloppy_tcp", MAIL) == (1, "director")
    assert machine.row("sloppy_tcp", WEB) == (0, "service")
    machine.set(WEB, sloppy_tcp=None)
    assert machine.row("sloppy_tcp", WEB) == (1, "director")
    machine.set(sloppy_tcp=None)
    assert machine.row("sloppy_tcp", WEB) == (0, "kernel")
    machine.set(sloppy_tcp=None)  # there is nothing to take back: as well


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sloppy_tcp": 1, "slopy": 1}, "TCP 192.168.1.176:80: unknown setting 'slopy'; allowed: "),
        ({"sloppy_tcp": 1, "drop_entry": 4}, "setting drop_entry = 4; allowed: 0 to 3"),
        ({"sloppy_tcp": 1, "cache_bypass": 1}, "unknown forwarder 'droute'"),
        ({"sloppy_tcp": "1"}, "set_settings: Expected `int | null`, got `str`"),
    ],
)
def test_a_fault_changes_nothing(machine: Machine, changes: Any, message: str) -> None:
    before = machine.call("settings", service=WEB)
    for method, params in (
        ("set_settings", {"service": WEB, "settings": changes}),
        ("edit_service", {"service": {**WEB, "scheduler": "rr", "settings": changes}}),
        ("add_service", {"service": {"tcp": "10.0.0.1:1", "settings": changes}}),
    ):
        if isinstance(changes["sloppy_tcp"], str) and method != "set_settings":
            continue
        with pytest.raises(ConfigError) as caught:
            machine.call(method, **params)
        assert message.removeprefix("TCP 192.168.1.176:80: ") in str(caught.value)
        assert method == "add_service" or message in str(caught.value)
    assert machine.call("settings", service=WEB) == before
    assert [service["config"]["tcp"] for service in machine.call("status")["services"]] == [
        WEB["tcp"],
        MAIL["tcp"],
    ]
    assert machine.director.services.get(WEB_KEY).settings.scheduler == "wlc"


def test_unknown_service(machine: Machine) -> None:
    for method, params in (("settings", {}), ("set_settings", {"settings": {"sloppy_tcp": 1}})):
        with pytest.raises(ConfigError, match=r"no virtual service TCP 10\.0\.0\.1:1"):
            machine.call(method, service={"tcp": "10.0.0.1:1"}, **params)


def test_a_service_that_comes_with_settings(machine: Machine) -> None:
    service = {"udp": f"{VIP}:53", "settings": {"timeout_udp": 5}}
    machine.call("add_service", service=service)
    assert machine.row("timeout_udp", {"udp": f"{VIP}:53"}) == (5, "service")
    assert service in machine.call("config")["service"]


def test_an_edit_keeps_settings_unless_it_has_some(machine: Machine) -> None:
    machine.set(WEB, sloppy_tcp=1, drop_entry=3)
    machine.call("edit_service", service={**WEB, "scheduler": "rr"})
    assert machine.call("config")["service"][0]["settings"] == {"drop_entry": 3, "sloppy_tcp": 1}
    machine.call("edit_service", service={**WEB, "settings": {"timeout_udp": 9}})
    assert machine.call("config")["service"][0]["settings"] == {"timeout_udp": 9}


def test_timeouts_are_three_of_the_settings(machine: Machine) -> None:
    machine.call("set_timeouts", timeouts={"tcp": 600, "tcp_fin": 0})
    assert machine.row("timeout_established") == (600, "director")
    assert machine.row("timeout_finwait") == (120, "kernel")
    machine.set(timeout_udp=60, timeout_synrecv=5)
    config = machine.call("config")
    assert config["timeouts"] == {"tcp": 600, "udp": 60}
    assert config["settings"] == {"timeout_synrecv": 5}
    status = machine.call("status")
    assert status["timeouts"] == {"tcp": 600, "tcp_fin": 120, "udp": 60}
    assert status["settings"] == {
        "timeout_established": 600, "timeout_synrecv": 5, "timeout_udp": 60,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="timeout_established = -1; allowed: 1 to 2678400"):
        machine.call("set_timeouts", timeouts={"tcp": -1})


# --- apply ---


def test_apply_makes_the_difference(machine: Machine) -> None:
    machine.set(sloppy_tcp=1, timeout_udp=60, drop_packet=3)
    machine.set(WEB, drop_entry=1, timeout_udp=5)
    server = [{"address": "192.168.1.11"}]
    wanted = {
        "timeouts": {"udp": 60, "tcp": 600},
        "settings": {"drop_packet": 1, "secure_tcp": 2},
        "service": [
            {**WEB, "server": server, "settings": {"drop_entry": 3, "timeout_udp": 5}},
            {**MAIL, "server": server},
        ],
    }
    assert machine.apply(**wanted) == [
        "set drop_packet = 1",
        "set secure_tcp = 1",
        "took back sloppy_tcp",
        "set timeout_established = 600",
        "set drop_entry = 3 of TCP 192.168.1.176:80",
    ]
    assert machine.apply(**wanted) == []
    assert machine.apply(**machine.call("config")) == []


def test_apply_keeps_a_timeout_of_0(machine: Machine) -> None:
    machine.set(timeout_established=600, timeout_finwait=30)
    kept = machine.call("config")["service"]
    assert machine.apply(timeouts={"tcp": 0, "udp": 0}, service=kept) == [
        "took back timeout_finwait"
    ]
    assert machine.row("timeout_established") == (600, "director")


@pytest.mark.parametrize(
    "faulty",
    [
        {"settings": {"drop_entry": 9}},
        {"settings": {"drop_entry": "1"}},
        {"settings": {"cache_bypass": 1}},
        {"settings": {"timeout_udp": 60}, "timeouts": {"udp": 60}},
        {"service": [{**MAIL, "settings": {"sloppy_tcp": 1}}, {**WEB, "settings": {"x": 1}}]},
        {"service": [{**MAIL, "settings": {"sloppy_tcp": 1}}, {**WEB, "scheduler": "nope"}]},
    ],
)
def test_apply_is_whole_or_not_at_all(machine: Machine, faulty: dict[str, Any]) -> None:
    machine.set(sloppy_tcp=1, timeout_udp=60)
    machine.set(WEB, drop_entry=1)
    before = machine.call("config")
    with pytest.raises(ConfigError):
        machine.apply(**{"settings": {"drop_packet": 3}, **faulty})
    assert machine.call("config") == before


def test_problems_know_what_cache_bypass_needs(machine: Machine) -> None:
    config = Config(settings={"cache_bypass": 0}, service=[Service(settings={"cache_bypass": 1})])
    config = msgspec.structs.replace(
        config, service=[Service(**WEB, settings={"cache_bypass": 1, "sloppy_tcp": None})]
    )
    said = problems(config, machine.control.plugins)
    assert len(said) == 2
    assert said[0].startswith("unknown forwarder 'droute'; installed: ")
    assert said[0].endswith("at `$.service[0].settings.cache_bypass`")
    assert said[1] == "setting sloppy_tcp has no value - at `$.service[0].settings.sloppy_tcp`"
    with pytest.raises(UnknownPlugin):
        machine.set(WEB, cache_bypass=1)


@given(st.lists(st.tuples(st.sampled_from([None, WEB, MAIL]), settings(TUNABLE)), max_size=5))
def test_any_changes_come_back_from_the_configuration(
    changes: list[tuple[dict[str, Any] | None, dict[str, int]]],
) -> None:
    machine = Machine()
    for service, values in changes:
        machine.set(service, **plain(values))
    config = machine.call("config")
    fresh = Machine()
    fresh.apply(**config)
    assert fresh.call("config") == config
    for service in ({}, {"service": WEB}, {"service": MAIL}):
        assert fresh.call("settings", **service) == machine.call("settings", **service)


# --- defences ---


def test_defences_at_work_and_what_they_gave_up() -> None:
    machine = Machine(size=100)
    machine.set(amemthresh=50, drop_entry=1, secure_tcp=1)
    machine.set(MAIL, drop_packet=3, am_droprate=2, drop_entry=0)

    def status() -> dict[str, Any]:
        found: dict[str, Any] = machine.call("status")
        return found

    def defences() -> list[list[str]]:
        found = status()
        return [found["defences"], *(service["defences"] for service in found["services"])]

    assert defences() == [[], [], ["drop_packet"]]
    for number in range(60):
        machine.syn(number)
    machine.now = 1.0
    assert defences() == [["drop_entry", "secure_tcp"]] * 2 + [["drop_packet", "secure_tcp"]]
    assert status()["dropped_entries"] > 0
    for number in range(100, 120):
        machine.syn(number, 25)
    found = status()
    assert found["dropped_packets"] == 10
    assert (found["shed"], found["refused"]) == (0, 0)
    for number in range(200, 300):
        machine.syn(number)
    assert status()["shed"] > 0
    assert status()["entries"] == 100
    machine.set(amemthresh=None, drop_entry=None, secure_tcp=None)
    assert defences() == [[], [], ["drop_packet"]]
