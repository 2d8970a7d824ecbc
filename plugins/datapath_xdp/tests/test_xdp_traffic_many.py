"""Ten thousand connections at once, and a daemon that is killed in the middle of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdp_crowd import CROWD_PORT, counts, crowd
from xdp_daemon import Daemon, service
from xdp_decap import DecapNetwork
from xdp_network import VIP, built, until

pytestmark = pytest.mark.integration


@pytest.fixture
def network(bpf: None, tmp_path: Path) -> Iterator[DecapNetwork]:
    with built(DecapNetwork, tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("mode", "scheduler", "count"), [("native", "wlc", 10_000), ("generic", "rr", 2_000)]
)
def test_many_connections_outlive_the_daemon(network, bpffs, mode, scheduler, count):
    settings = {"timeout_finwait": 4}
    services = [
        service(scheduler=scheduler, settings=settings) | {"tcp": f"{VIP}:{CROWD_PORT}"},
    ]
    daemon = Daemon(network, bpffs / "pins", services, mode=mode).ready()
    half = {"server0": count // 2, "server1": count // 2}
    with crowd(network) as clients:
        assert clients.open(count) == half
        until(lambda: counts(daemon.call("status")) == (count, 0))
        before = daemon.call("connections")
        clients.talk()
        time.sleep(1)
        daemon.kill()
        time.sleep(1)
        daemon = Daemon(network, bpffs / "pins", services, mode=mode).ready()
        status = daemon.call("status")
        assert clients.hush() == half
        assert counts(status) == (count, 0)
        assert status["half_open"] == 0
        assert clients.ask() == half
        known = {each["client"]: each["server"] for each in before}
        after = {each["client"]: each["server"] for each in daemon.call("connections")}
        assert after == known
        assert len(after) == count
        assert clients.end() == half
        until(lambda: counts(daemon.call("status"))[0] == 0)
        until(lambda: daemon.call("status")["entries"] == 0, 10)
    lost = daemon.call("status")["lost"]
    assert not any(lost.values()), lost
