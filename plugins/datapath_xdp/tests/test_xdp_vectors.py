"""The recordings of the real kernel, replayed on the XDP datapath in a network namespace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lvskit import TCP, UDP, load_plugins
from lvskit.testing.vectors import find, load, run_scenario
from lvskit.testing.wire import Tree

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("bpf")]
VECTORS = Path(__file__).parents[3] / "tests" / "vectors"
PLUGINS = load_plugins(strict=True)
UNSEEN = {
    "diff_revived_by_reset": "of the host's own resets the director hears for local servers alone",
    "sctp_edges": "packets to a port that no service claims stay in the host's stack",
}
"""As of the live datapath, which carries these."""
PORTABLE = {
    "diff_pmtu_disc_former_method": "connections of a method that their server has no more",
    "diff_tunnel_type_edited": "GUE",
    "pkt_localnode_tunnel": "a service with a server on the director itself",
    "tcp_from_ESTABLISHED_secure3": "secure_tcp",
    "tcp_secure_tcp3": "secure_tcp",
    "udp_ops_rr": "one-packet scheduling",
    "udp_ops_wlc": "one-packet scheduling",
}
"""Recordings with packets of known connections that the program is to pass on, and why."""


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.xfail(reason=UNSEEN[path.stem], strict=True)]
            if path.stem in UNSEEN
            else [],
        )
        for path in find([VECTORS])
        if not path.stem.startswith(("cli_", "lvsadm_"))  # no packets: the memory datapath's
    ],
)
def test_xdp_vector(path: Path) -> None:
    scenario = load(path)
    outcome = run_scenario(scenario, PLUGINS, "xdp")
    if outcome.kind == "skipped":
        pytest.skip(outcome.detail)
    assert outcome.kind == "passed", outcome.detail
    forwarded = outcome.carried["by the program"]
    if path.stem in PORTABLE:
        assert forwarded < known(scenario)
    else:
        assert forwarded >= known(scenario), "the program has passed on what it should know"


def known(scenario: Tree) -> int:
    """Return how many packets a recording tunnels of connections that it has tunnelled before."""
    servers: dict[bytes, str] = {}
    count = 0
    for step in scenario["steps"]:
        expect, packet = step["expect"], bytes.fromhex(step["do"].get("hex", ""))
        if not expect.get("chosen"):
            continue
        if packet[0] == 0x45 and not (packet[6] & 0x3F or packet[7]):
            protocol, addresses, at = packet[9], packet[12:20], 20
        else:
            protocol, addresses, at = packet[6], packet[8:40], 40
        out = expect["out"]
        outer = ["ipip"] if out == "ipip" else [e.get("outer", {}).get("proto") for e in out]
        plain = outer in (["ipip"], ["ipv6-in-ip"])
        if protocol not in (TCP, UDP) or not plain:
            continue
        flow = bytes([protocol]) + addresses + packet[at : at + 4]
        again = servers.get(flow) == expect["chosen"]
        syn = protocol == TCP and packet[at + 13] & 2  # which may begin another one
        count += again and not syn
        servers[flow] = expect["chosen"]
    return count


def test_the_command_says_how_packets_were_carried() -> None:
    command = [sys.executable, "-m", "lvskit.testing.vectors", "--datapath", "xdp"]
    done = subprocess.run(
        [*command, VECTORS / "tcp_lifecycle.json"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "packets: 11 by the program, 1 from its records, 1 the portable way",
        "1 passed, 0 failed, 0 skipped",
    ]
