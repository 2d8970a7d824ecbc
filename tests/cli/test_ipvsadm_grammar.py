"""What ipvsadm 1.31 said, replayed: exit status and both outputs of every command, byte for byte.

What lvskit refuses (persistence engines, the synchronization daemon) is checked to be refused, and
then done without the part that is missing, so that later listings show the same services.
"""

from __future__ import annotations

import io
import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest

from lvskit import (
    Director,
    Route,
    load_plugins,
)
from lvskit.cli import lvsadm
from lvskit.control.api import Control

VECTORS = Path(__file__).parent.parent / "vectors"
HOSTS = {"127.0.0.1": "localhost", "192.168.1.14": "realserver14.example.com rs14"}
OWN = {"192.168.1.175", "192.168.1.176", "192.168.1.177", "127.0.0.1", "2001:db8::176", "::1"}
NAMES = (
    "cli_empty",
    "cli_errors",
    "cli_save_restore",
    "cli_listings",
    "edit_defaults",
    *sorted(path.stem for path in VECTORS.glob("persist_*.json")),
    *sorted(f"own/{path.stem}" for path in VECTORS.glob("own/lvsadm_*.json")),
)
REFUSED = {
    "cli_errors": {
        59: "the persistence engine 'sip'",
        150: "synchronization",
        152: "synchronization",
        153: "synchronization",
    },
}
"""Steps that lvskit refuses, and what its sentence names."""
NOT_THERE = {
    "cli_errors": {154, 157},  # list and stop the synchronization daemon that did not start
}
"""Steps that see what was refused before them."""


class Machine:
    """The director of the recordings, and its ipvsadm."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        plugins = load_plugins(strict=True)
        self.now = 0.0
        self.marks = scenario["director"].get("marks", [])
        director = self.director = Director(plugins, routes=route, size=4096)
        self.control = Control(director, plugins, lambda: self.now)

    def receive(self, packet: bytes) -> None:
        mark = next((m["mark"] for m in self.marks if matches(m, packet)), 0)
        self.director.receive(packet, self.now, mark)

    def ipvsadm(self, argv: list[str], stdin: str = "") -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        status = lvsadm.run(
            argv,
            client=lambda: self.control,
            stdin=io.StringIO(stdin),
            stdout=out,
            stderr=err,
            prog="ipvsadm",
            names=lvsadm.Names(HOSTS),
        )
        return status, out.getvalue(), err.getvalue()


def route(address: bytes) -> Route:
    source = "192.168.1.175" if len(address) == 4 else "2001:db8::175"
    packed = ipaddress.ip_address(source).packed
    return Route(packed, 1500, str(ipaddress.ip_address(address)) in OWN)


def matches(mark: dict[str, Any], packet: bytes) -> bool:
    if packet[0] >> 4 != 4 or ipaddress.ip_address(packet[16:20]) != ipaddress.ip_address(
        mark["dst"]
    ):
        return False
    protocols = {"tcp": 6, "udp": 17}
    port = int.from_bytes(packet[22:24], "big")
    return ("proto" not in mark or protocols[mark["proto"]] == packet[9]) and (
        "dports" not in mark or port in mark["dports"]
    )


def without_refused(text: str) -> str:
    """Return rules or a listing as they are without what lvskit refuses."""
    return text.replace(" --pe sip", "").replace(" pe sip", "")


def load(name: str) -> dict[str, Any]:
    return json.loads((VECTORS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_recording(name: str) -> None:
    scenario = load(name)
    machine = Machine(scenario)
    refused = REFUSED.get(name, {})
    for step in scenario["steps"]:
        machine.now = float(step["t"])
        do, expect = step["do"], step["expect"]
        if do["op"] == "send":
            machine.receive(bytes.fromhex(do["hex"]))
        if do["op"] != "ipvsadm":
            continue
        argv, stdin = do["argv"], do.get("stdin", "")
        where = f"{name} step {step['n']}: {argv} {stdin!r}"
        if step["n"] in refused:
            check_refused(machine, argv, refused[step["n"]], where)
            continue
        got = machine.ipvsadm(argv, without_refused(stdin) if name in REFUSED else stdin)
        if step["n"] in NOT_THERE.get(name, ()):
            assert got[1] == "", where
            continue
        out = without_refused(expect["stdout"]) if name in REFUSED else expect["stdout"]
        # Connections are listed in the order of a hash table whose seed is random.
        if "/stdout" in step.get("varies", ()) or got[1].startswith("IPVS connection entries"):
            assert sorted(got[1].splitlines()) == sorted(out.splitlines()), where
        else:
            assert got[1] == out, where
        assert (got[0], got[2]) == (expect["rc"], expect["stderr"]), where


def check_refused(machine: Machine, argv: list[str], thing: str, where: str) -> None:
    status, out, err = machine.ipvsadm(argv)
    assert (status, out) == (255, ""), where
    assert err.startswith("lvskit: "), where
    assert err.endswith("\n"), where
    assert thing in err, where
    rest = without_refused(" ".join(argv))
    if rest and argv[0] in ("-A", "-a"):
        assert machine.ipvsadm(rest.split()) == (0, "", ""), where


EMPTY = {"director": {}}


@pytest.mark.parametrize(
    ("option", "name"), [("-g", "droute"), ("-m", "masq"), ("", "droute"), ("-g -w 3", "droute")]
)
def test_method_without_plugin(option: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LVSKIT_DISABLE_PLUGINS", "fwd_direct,fwd_masq")
    machine = Machine(EMPTY)
    machine.ipvsadm(["-A", "-t", "10.0.0.1:80"])
    words = f"-a -t 10.0.0.1:80 -r 10.0.0.2 {option}".split()
    status, out, err = machine.ipvsadm(words)
    assert (status, out) == (255, "")
    assert err.startswith(f"lvskit: unknown forwarder '{name}'; installed: ")
    assert ("give -i" in err) == (option == "")
    assert machine.ipvsadm([*words[:5], "-i"]) == (0, "", "")
    assert machine.ipvsadm(["-Sn"])[1].endswith(" -i -w 1 --tun-type ipip\n")


def test_missing_scheduler_is_the_kernels_message() -> None:
    machine = Machine(EMPTY)
    complaint = "Scheduler or persistence engine not found\n"
    assert machine.ipvsadm(["-A", "-t", "10.0.0.1:80", "-s", "twos"]) == (255, "", complaint)
