"""The generator, the comparison and the shrinking: what they promise without a kernel."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from compare import Result, Scenario, recorded, without_chance
from generate import scenario
from profiles import PROFILES
from shrink import shrink

from lvskit import load_plugins
from lvskit.testing import packets
from lvskit.testing.world import MemoryWorld, Unsupported

HERE = Path(__file__).parent
PLUGINS = load_plugins(strict=True)


def test_the_same_seed_gives_the_same_scenario_in_any_process() -> None:
    program = "import json, generate; print(json.dumps(generate.scenario('everything', 4, 2)))"
    made = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=HERE,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(HERE)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert made == {json.dumps(scenario("everything", 4, 2)) + "\n"}


def test_other_numbers_and_seeds_give_other_scenarios() -> None:
    made = [scenario("everything", seed, number) for seed in (1, 2) for number in (1, 2)]
    assert len({json.dumps(each["steps"]) for each in made}) == 4


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_profile_plays_on_the_memory_datapath(profile: str) -> None:
    for number in range(4):
        made = scenario(profile, 9, number)
        assert len(made["steps"]) == 60
        assert _play(made) > 10, "most packets should concern services"


def _play(made: Scenario) -> int:
    """Play a scenario; return how many packets were sent in answer."""
    world, emitted = MemoryWorld(made, PLUGINS), 0
    for number, step in enumerate(made["steps"]):
        world.set_time(world.network.now + 0.02 + step["do"].get("seconds", 0))
        do = step["do"]
        if do["op"] == "ipvsadm":
            assert world.ipvsadm(do["argv"], "")["rc"] in (0, 2, 255), number
        elif do["op"] == "send":
            emitted += len(world.send(bytes.fromhex(do["pkt"]["raw"])))
        elif do["op"] == "sysctl":
            try:
                world.setting(do["name"], do["value"])
            except Unsupported:
                pass
    world.close()
    return emitted


def test_packets_fit_the_wire() -> None:
    for number in range(30):
        made = scenario("everything", 3, number)
        sizes = [
            len(step["do"]["pkt"]["raw"]) // 2 for step in made["steps"] if "pkt" in step["do"]
        ]
        assert max(sizes) <= made["director"]["mtu"]


def _tunnelled(source: str = "192.168.1.175", ident: int = 7, *, df: bool = False) -> bytes:
    inner = packets.tcp("10.0.0.1", 1024, "192.168.1.176", 80)
    return packets.ip(source, "192.168.1.11", 4, inner, df=df, identification=ident)


def test_only_what_the_kernel_leaves_to_chance_is_taken_out() -> None:
    assert without_chance(_tunnelled(ident=7)) == without_chance(_tunnelled(ident=8))
    assert without_chance(_tunnelled(df=True)) == _tunnelled(df=True)
    assert without_chance(_tunnelled("10.0.0.9")) == _tunnelled("10.0.0.9"), "not the director's"
    changed = bytearray(_tunnelled())
    changed[-1] ^= 1
    assert without_chance(bytes(changed)) != without_chance(_tunnelled())


def test_a_wrong_header_checksum_does_not_hide_behind_chance() -> None:
    wrong = bytearray(_tunnelled())
    wrong[10] ^= 1
    assert without_chance(bytes(wrong)) != without_chance(_tunnelled())


def test_the_source_port_of_gue_is_chance_but_its_checksum_is_not() -> None:
    ends = ("192.168.1.175", 4000, "192.168.1.11", 6080)
    right = packets.udp(*ends, payload=b"inside")
    other = packets.udp(ends[0], 4001, *ends[2:], payload=b"inside")
    assert without_chance(right) == without_chance(other)
    wrong = bytearray(right)
    wrong[27] ^= 1
    assert without_chance(bytes(wrong)) != without_chance(right)


def test_flow_labels_are_chance_in_the_director_s_own_replies_alone() -> None:
    error = packets.icmp_error("2001:db8::176", "2001:db8:1::1", 1, 4, b"quote")
    labelled = error[:2] + b"\x12\x34" + error[4:]
    assert without_chance(labelled) == without_chance(error)
    forwarded = packets.tcp("2001:db8:1::1", 1024, "2001:db8::176", 80)
    labelled = forwarded[:2] + b"\x12\x34" + forwarded[4:]
    assert without_chance(labelled) != without_chance(forwarded)


def test_a_recording_names_what_is_chance() -> None:
    step = {"do": {}, "expect": {"out": [{"hex": _tunnelled().hex()}]}}
    exact = {"do": {}, "expect": {"out": [{"hex": _tunnelled(df=True).hex()}]}}
    steps = recorded({"name": "x", "steps": [step, exact]})["steps"]
    assert [each.get("varies") for each in steps] == [["/out/0/hex"], None]


def test_shrinking_leaves_what_the_difference_needs() -> None:
    asked: list[int] = []

    def judge(scenarios: Sequence[Scenario]) -> list[tuple[Result, Scenario]]:
        asked.append(len(scenarios))
        found = []
        for each in scenarios:
            there = {step["do"]["n"] for step in each["steps"]}
            kind = "differs" if {3, 17, 30} <= there else "agreed"
            steps = [*each["steps"], {"do": {"n": -1}}, {"do": {"n": -2}}]
            result = Result(each["name"], kind, len(each["steps"]), "out")
            found.append((result, {**each, "steps": steps}))
        return found

    steps = [{"do": {"n": n}} for n in range(40)] + [{"do": {"n": -1}}, {"do": {"n": -2}}]
    whole = {"name": "whole", "director": {}, "steps": steps}
    result, small = shrink(whole, Result("whole", "differs", 31, "out"), judge)
    assert [step["do"]["n"] for step in small["steps"]] == [3, 17, 30, -1, -2]
    assert (result.kind, small["name"]) == ("differs", "whole")
    assert len(asked) < 25
