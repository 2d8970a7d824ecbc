"""What may be on an interface, or in the directory of its pins, when a daemon starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.engine import OBJECT, Engine
from lvskit_datapath_xdp.loader import BpfObject, Link, Map, Program
from lvskit_datapath_xdp.options import XdpOptions
from lvskit_datapath_xdp.pins import Pins, claim, default_directory
from test_xdp_life_crash import Peer, entries
from xdp_daemon import Daemon, program_on, service
from xdp_network import until

from lvskit import DatapathError

pytestmark = pytest.mark.integration
OWN = f"layout{layout.VERSION}"


@pytest.fixture
def crashed(network, bpffs):
    """Three connections of a daemon that was killed."""
    daemon = Daemon(network, bpffs / "pins", [service()]).ready()
    peers = [Peer(network) for _ in range(3)]
    until(lambda: daemon.active() == [1, 2])
    daemon.kill()
    return peers


def again(network, bpffs):
    return Daemon(network, bpffs / "pins", [service()])


def test_a_second_director_is_refused(network, bpffs):
    first = again(network, bpffs).ready()
    peer = Peer(network)
    place = network.place / "second"
    place.mkdir()
    second = Daemon(network, bpffs / "pins", [service()], place=place, portable={"queue": 9})
    said = second.refused()
    assert "another director has the interface eth0: process " in said
    assert f"process {first.process.pid} (" in said
    assert "lvskit run" in said
    peer.ask()
    assert len(entries(first)) == 1


def test_a_second_director_with_other_pins_is_refused_too(network, bpffs):
    first = again(network, bpffs).ready()
    place = network.place / "second"
    place.mkdir()
    others = bpffs / "others" / "pins"
    second = Daemon(network, others, [service()], place=place, portable={"queue": 9})
    said = second.refused()
    assert "an XDP program is attached to eth0 already: number " in said
    assert f"of process {first.process.pid} (" in said
    assert "bpftool link detach id " in said
    assert not others.exists()
    Peer(network).ask()


def test_a_program_of_somebody_else_is_named(network, bpffs):
    with BpfObject.read(OBJECT).load() as loaded:
        loaded.programs["lvskit_clock"].pin(bpffs / "foreign")
    network.director.run(f"ip link set dev eth0 xdpgeneric pinned {bpffs}/foreign")
    said = again(network, bpffs).refused()
    number = program_number(bpffs / "foreign")
    assert f"an XDP program is attached to eth0 already: number {number}, 'lvskit_clock'" in said
    command = "ip link set dev eth0 xdpgeneric off"
    assert f"remove it: {command}" in said
    network.director.run(command)
    again(network, bpffs).ready()
    Peer(network).ask()


def program_number(path: Path) -> int:
    with Program.open(path) as program:
        return program.info().id


def test_pins_of_another_version_are_not_adopted(network, bpffs, crashed):
    attached = program_on(network)
    (bpffs / "pins" / OWN).rename(bpffs / "pins" / "layout0")
    daemon = again(network, bpffs).ready()
    said = daemon.log.read_text()
    assert "are of another version of this plugin (layout0; this one: " in said
    assert "they are not adopted, and their connections are lost" in said
    assert entries(daemon) == {}
    # The interface was never without a program.
    assert program_on(network) not in ("", attached)
    assert "was replaced in its place" in said
    assert [each.name for each in (bpffs / "pins").iterdir()] == [OWN]
    Peer(network).ask()


def test_unfinished_pins_are_begun_again(network, bpffs, crashed):
    (bpffs / "pins" / OWN / "names").unlink()
    daemon = again(network, bpffs).ready()
    assert entries(daemon) == {}
    Peer(network).ask()
    daemon.stop()
    assert program_on(network) == ""


def test_another_program_is_replaced_in_its_place(network, bpffs, crashed):
    place = bpffs / "pins" / OWN
    with network.director.entered(), BpfObject.read(OBJECT).load() as loaded:
        other = loaded.programs["lvskit_clock"]
        with Link.open(place / "link") as link:
            link.update(other)
            before = link.info()
        (place / "program").unlink()
        other.pin(place / "program")
    daemon = again(network, bpffs).ready()
    with Link.open(place / "link") as link:
        assert link.info().id == before.id
        assert link.info().program_id == program_number(place / "program") != before.program_id
    assert len(entries(daemon)) == 3
    for peer in crashed:
        peer.ask()


def test_a_slot_that_was_being_written_is_free_again(network, bpffs, crashed):
    with Map.open(bpffs / "pins" / OWN / "connections4") as map_:
        words = map_.mmap().cast("B").cast("Q")
        taken = [at for at in range(0, len(words), 2) if words[at]]
        free = [at for at in range(0, len(words), 2) if not words[at]][:3]
        assert len(taken) == 3
        for at in free:
            words[at] = layout.BUSY
        daemon = again(network, bpffs).ready()
        assert len(entries(daemon)) == 3
        assert [at for at in range(0, len(words), 2) if words[at]] == taken
        words.release()


def test_sizes_stay_as_they_are_adopted(network, bpffs, crashed):
    daemon = Daemon(network, bpffs / "pins", [service()], slots4=64).ready()
    assert "slots4 stays 131072, as the program that is adopted has it" in daemon.log.read_text()
    assert len(entries(daemon)) == 3


def test_a_lost_interface_leaves_no_pins(network, bpffs):
    daemon = again(network, bpffs).ready()
    network.director.run("ip link delete eth0")
    assert "the interface eth0 has gone, and the program with it" in daemon.refused()
    assert not (bpffs / "pins").exists()


def test_a_program_whose_interface_was_lost_meanwhile_is_attached_again(network, bpffs, crashed):
    # The interface comes back under its name, with the same addresses and another number.
    peer = f"/proc/{os.getpid()}/fd/{network.director.handle}"
    network.director.run("ip link delete eth0")
    network.switch.run(f"""
        ip link add port1 type veth peer name eth0 netns {peer}
        ip link set port1 master br0 up
    """)
    network.director.run("""
        ethtool -K eth0 tx off >&2
        ip link set eth0 up
        ip address add 10.1.0.1/24 dev eth0
        ip address add 10.1.0.100/32 dev eth0
    """)
    network.client.run("ip neighbour flush dev eth0")
    daemon = Daemon(network, bpffs / "pins", [service()], mode="generic").ready()
    assert "eth0 was deleted meanwhile, and the program with it" in daemon.log.read_text()
    assert len(entries(daemon)) == 3
    for each in crashed:
        each.ask()


# --- the directory ---


def test_a_renamed_interface_is_found(veth, bpffs):
    engine = Engine(XdpOptions(interface="near", pins=str(bpffs / "near")), 64)
    engine.attach()
    engine.close()
    for command in ("link set near down", "link set near name eth0.7", "link set eth0.7 up"):
        subprocess.run(["ip", *command.split()], check=True)
    pins = Pins(bpffs / "eth0:7", "eth0.7", veth.near)
    assert {each.name for each in bpffs.iterdir() if each.is_dir()} == {"eth0:7"}
    with pins.link() as link:
        assert link.info().ifindex == veth.near
    pins.clear()
    pins.close()
    assert not (bpffs / "eth0:7").exists()


def test_what_others_have_pinned_is_left_alone(veth, bpffs):
    foreign = bpffs / "firewall" / "eth"
    foreign.mkdir(parents=True)
    with BpfObject.read(OBJECT).load() as loaded:
        link = loaded.programs["lvskit_clock"].attach(veth.near, "generic")
        link.pin(foreign / "link")
        link.close()
    engine = Engine(XdpOptions(interface="near", pins=str(bpffs / "near")), 64)
    with pytest.raises(DatapathError, match=r"by link \d+, which is pinned; .*bpftool link detach"):
        engine.attach()
    engine.close()
    assert {each.name for each in bpffs.iterdir() if each.is_dir()} == {"firewall"}
    assert (foreign / "link").exists()


def test_the_mode_stays(veth, bpffs, caplog):
    for mode in ("generic", "native"):
        options = XdpOptions(interface="near", pins=str(bpffs / "near"), mode=mode)
        engine = Engine(options, 64)
        engine.attach()
        assert engine.mode == "generic"
        assert ("mode stays generic" in caplog.text) == (mode == "native")
        engine.close()


def test_pins_of_another_interface_are_refused(veth, bpffs):
    engine = Engine(XdpOptions(interface="near", pins=str(bpffs / "pins")), 64)
    engine.attach()
    engine.close()
    with pytest.raises(DatapathError, match=f"the pins at {bpffs}/pins are of the interface near"):
        Engine(XdpOptions(interface="far", pins=str(bpffs / "pins")), 64)


def test_pins_of_another_user_are_refused(veth, bpffs):
    place = bpffs / "pins"
    place.mkdir()
    os.chown(place, 65534, 65534)
    with pytest.raises(DatapathError, match=f"the pins at {place} belong to user 65534"):
        Engine(XdpOptions(interface="near", pins=str(place)), 64)


def test_a_failed_start_leaves_no_pins(veth, bpffs):
    with (
        BpfObject.read(OBJECT).load() as loaded,
        loaded.programs["lvskit"].attach(veth.near, "generic"),
    ):
        engine = Engine(XdpOptions(interface="near", pins=str(bpffs / "pins")), 64)
        with pytest.raises(DatapathError, match="an XDP program is attached to near already"):
            engine.attach()
        engine.close()
    assert not (bpffs / "pins").exists()


def test_the_directory_has_no_dots(veth):
    place = default_directory("eth0.100")
    assert place.name == "eth0:100"
    # In a namespace other than the first, which this is, the kernel's number of it is in the name.
    assert place.parent.name.startswith("lvskit:")
    here = subprocess.run(
        [sys.executable, "-c", "from lvskit_datapath_xdp.pins import default_directory as d;"
         "print(d('eth0.100'))"], check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert Path(here.stdout.strip()) == place


def test_no_pins_can_be_asked_for(veth):
    assert claim(XdpOptions(interface="near", pins=""), veth.near) is None
    with pytest.raises(DatapathError, match="nothing can be kept without pins"):
        claim(XdpOptions(interface="near", pins="", keep=True), veth.near)
