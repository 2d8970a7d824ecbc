"""Rules for which there is no recording, on the XDP datapath in simulated time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lvskit import load_plugins
from lvskit.testing import packets
from lvskit.testing.live_world import LiveWorld, rehearsals

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("bpf")]
PLUGINS = load_plugins(strict=True)
VIP, CLIENT = "192.168.1.176", "10.1.2.3"


class Town:
    """A director with the XDP datapath, and time that is told."""

    def __init__(self, *marks: dict[str, Any]) -> None:
        setting = {"director": {"marks": list(marks)}, "steps": []}
        self.world = LiveWorld(setting, PLUGINS, make=rehearsals()["xdp"]())
        self.now = 0.0

    def do(self, *lines: str) -> None:
        for line in lines:
            assert not self.world.ipvsadm(line.split(), "")["rc"], line
            self.wait(0.02)  # until it is known where a server is

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.world.set_time(self.now)

    def send(self, flags: str, port: int = 1000, **more: Any) -> str | None:
        """Return the server that a packet is tunnelled to."""
        out = self.world.send(packets.tcp(CLIENT, port, VIP, 80, flags, **more))
        return out[0]["tunnelled_to"] if out else None

    def establish(self, port: int = 1000) -> str | None:
        server = self.send("S", port)
        assert self.send("A", port) == server
        return server

    def entries(self) -> dict[str, tuple[str, int]]:
        """Return state and seconds left of each connection, by the client's port."""
        return {
            entry["client"].rpartition(":")[2]: (entry["state"], entry["expires"])
            for entry in self.world.conns()
        }

    def by_program(self) -> int:
        return self.world.carried()["by the program"]


@pytest.fixture
def town() -> Iterator[Town]:
    """A service with two servers."""
    made = Town()
    made.do(
        f"-A -t {VIP}:80 -s rr",
        f"-a -t {VIP}:80 -r 192.168.1.11 -i",
        f"-a -t {VIP}:80 -r 192.168.1.12 -i",
    )
    yield made
    made.world.close()


def test_a_shorter_timeout_holds_from_the_next_packet_on(town: Town) -> None:
    town.establish(1000)
    town.establish(1001)
    town.wait(10)
    town.send("A", 1000)
    town.do("--set 30 0 0")
    town.wait(1)
    assert town.entries() == {"1000": ("ESTABLISHED", 898), "1001": ("ESTABLISHED", 888)}
    town.send("A", 1000)
    town.wait(5)
    town.send("A", 1000)
    assert town.by_program() == 7
    town.wait(29)
    assert town.entries() == {"1000": ("ESTABLISHED", 1), "1001": ("ESTABLISHED", 854)}
    town.wait(1.1)
    assert list(town.entries()) == ["1001"]


def test_a_longer_timeout_does_too(town: Town) -> None:
    town.do("--set 30 0 0")
    town.establish(1000)
    town.establish(1001)
    town.wait(10)
    town.do("--set 900 0 0")
    town.send("A", 1001)
    town.wait(19)
    assert town.entries() == {"1000": ("ESTABLISHED", 0), "1001": ("ESTABLISHED", 881)}
    town.wait(2)
    assert list(town.entries()) == ["1001"]


def test_the_connections_of_a_removed_service_keep_theirs(town: Town) -> None:
    town.establish()
    town.wait(10)
    town.send("A")
    town.do(f"-D -t {VIP}:80", "--set 30 0 0")
    town.wait(5)
    assert town.entries() == {"1000": ("ESTABLISHED", 894)}


def test_what_was_to_give_way_ends_though_nothing_takes_its_place(town: Town) -> None:
    """Source: Linux ip_vs_core.c, ip_vs_in: the old one expires at once, whatever comes then."""
    town.establish()
    town.send("R")
    town.send("A")
    town.wait(1)
    assert town.entries() == {"1000": ("CLOSE", 9)}
    town.send("SR")
    town.wait(0.1)
    assert town.entries() == {}


def test_so_it_does_where_the_portable_path_decides(town: Town) -> None:
    town.do("-A -f 5")  # from now on a mark may matter
    test_what_was_to_give_way_ends_though_nothing_takes_its_place(town)


def test_and_where_its_service_has_become_portable(town: Town) -> None:
    town.establish()
    town.send("R")
    town.send("A")
    town.do(f"-a -t {VIP}:80 -r 192.168.1.175 -i -w 0")  # the director itself
    town.send("SR")
    town.wait(0.1)
    assert town.entries() == {}


def test_settings_hold_at_once(town: Town) -> None:
    assert town.send("A") is None
    town.world.setting("net.ipv4.vs.sloppy_tcp", 1)
    assert town.send("A") == "192.168.1.12"
    assert town.by_program() == 1


def test_defences_see_what_the_program_has_seen(town: Town) -> None:
    """Few packets and none for a minute condemn a connection: neither alone does."""
    town.establish(1000)
    for port in (1001, 1002):
        town.establish(port)
        for _ in range(7):
            town.send("A", port)
    town.establish(1003)
    town.wait(70)
    town.send("A", 1003)
    town.send("A", 1001)
    town.wait(1)
    town.world.setting("net.ipv4.vs.drop_entry", 3)
    for _ in range(40):  # it looks at a part of the table each second
        town.wait(1)
    assert list(town.entries()) == ["1001", "1002", "1003"]
    for _ in range(90):
        town.wait(1)
    assert list(town.entries()) == ["1001", "1002"]


def test_every_packet_counts_for_them_once(town: Town) -> None:
    town.establish()  # placed by the program
    for _ in range(5):
        town.send("A")
    town.world.setting("net.ipv4.vs.drop_entry", 3)
    for _ in range(40):
        town.wait(1)
    (connection,) = town.world.director.table
    assert connection.packets == 7


def test_a_mark_makes_a_connection_another_service_s() -> None:
    town = Town({"dst": VIP, "proto": "tcp", "dports": [80], "mark": 5})
    try:
        town.do(
            f"-A -t {VIP}:80",
            f"-a -t {VIP}:80 -r 192.168.1.11 -i",
        )
        assert town.establish(1000) == "192.168.1.11"
        town.do("-A -f 5", "-a -f 5 -r 192.168.1.12 -i")
        assert town.send("A", 1000) == "192.168.1.11"
        assert town.establish(1001) == "192.168.1.12"
        town.do("-D -f 5")
        assert town.establish(1002) == "192.168.1.11"
    finally:
        town.world.close()


def test_what_is_opened_the_portable_way_goes_on_in_the_program(town: Town) -> None:
    town.do("-A -f 5")
    assert town.establish() == "192.168.1.12"
    for flags in ("PA", "A", "FA", "A"):
        assert town.send(flags) == "192.168.1.12"
    assert town.by_program() == 5
    assert town.entries() == {"1000": ("FIN_WAIT", 120)}


def test_a_service_is_served_where_its_address_is_the_host_s(town: Town) -> None:
    town.do("-A -t 10.7.0.1:80 -s rr", "-a -t 10.7.0.1:80 -r 192.168.1.11 -i")
    packet = packets.tcp(CLIENT, 1, "10.7.0.1", 80)
    (out,) = town.world.send(packet)
    assert (out["next_hop"], out["tunnelled_to"]) == ("gw", None)  # merely routed


@pytest.mark.parametrize("source", [VIP, "192.168.1.177", "192.168.1.175", "127.0.0.1"])
def test_nothing_is_opened_by_the_host_s_own_addresses(town: Town, source: str) -> None:
    """Source: Linux net/ipv4/fib_frontend.c, fib_validate_source: they are martian from a wire."""
    town.do("-A -t 192.168.1.177:80 -s rr", "-a -t 192.168.1.177:80 -r 192.168.1.11 -i")
    assert town.world.send(packets.tcp(source, 1000, VIP, 80)) == []
    assert town.entries() == {}
