"""`lvskit run --datapath xdp --interface eth0`, `lvsadm` and `curl`, as an operator has them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from xdp_network import SERVERS, VIP, until

pytestmark = pytest.mark.integration
BIN = Path(sys.executable).parent
WEB = 8080


@pytest.mark.parametrize("mode", ["generic", "native"])
def test_the_daemon(network, tmp_path, mode):
    if not shutil.which("curl"):
        pytest.skip("needs the command `curl`")
    for host in network.servers:
        pages = tmp_path / f"{host.name}.pages"
        pages.mkdir()
        (pages / "index.html").write_text(host.name * 50_000)
        (pages / "name").write_text(f"{host.name}\n")
        host.start(
            sys.executable, "-m", "http.server", str(WEB), "--bind", VIP, "--directory", str(pages)
        )
    config, log, control = tmp_path / "lvskit.toml", tmp_path / "log", tmp_path / "control"
    config.write_text(f'[director.datapath_options]\nmode = "{mode}"\n')
    with log.open("w") as stream:
        daemon = network.director.start(
            str(BIN / "lvskit"), "run", str(config), "--datapath", "xdp", "--interface", "eth0",
            "--socket", str(control), stderr=stream,
        )  # fmt: skip
    until(lambda: "ready" in log.read_text() or daemon.poll() is not None, 20)
    assert daemon.poll() is None, log.read_text()
    assert f"{mode} XDP on eth0" in log.read_text()

    def lvsadm(line: str) -> str:
        return network.director.run(f"LVSKIT_SOCKET={control} {BIN}/lvsadm {line}")

    lvsadm(f"-A -t {VIP}:{WEB} -s wlc")
    for server in SERVERS:
        lvsadm(f"-a -t {VIP}:{WEB} -r {server} -i")
    names = network.client.run(f"for i in 1 2 3 4 5 6; do curl -sS http://{VIP}:{WEB}/name; done")
    assert sorted(set(names.split())) == ["server0", "server1"]
    page = network.client.run(f"curl -sS http://{VIP}:{WEB}/")
    assert page in ("server0" * 50_000, "server1" * 50_000)

    def servers() -> list[dict[str, Any]]:
        told = network.director.run(f"LVSKIT_SOCKET={control} {BIN}/lvskit status --json")
        found: list[dict[str, Any]] = json.loads(told)["services"][0]["servers"]
        return found

    def inactive() -> list[str]:
        listed = [line.split() for line in lvsadm("-L -n").splitlines() if "Tunnel" in line]
        assert [row[1:4] for row in listed] == [[f"{s}:{WEB}", "Tunnel", "1"] for s in SERVERS]
        return [count for row in listed for count in row[4:]]

    until(lambda: sum(map(int, inactive()[1::2])) == 7)
    assert inactive()[::2] == ["0", "0"]
    told = json.loads(
        network.director.run(f"LVSKIT_SOCKET={control} {BIN}/lvskit top --json --interval 0.1")
    )
    datapath, service = told["datapath"], told["services"][0]
    assert datapath["facts"] == {"interface": "eth0", "mode": mode}
    total = {name: count["total"] for name, count in datapath["figures"].items()}
    assert total["misses"] >= 7  # and all packets to a server that is not found yet
    assert total["placed"] == 0
    assert total["states"] >= 5  # all but those, of the first connection to each server
    sent = sum(each["counters"]["inpkts"] for each in servers())
    assert total["forwarded"] + total["misses"] == sent
    assert service["inactive"] == 7
    daemon.terminate()
    assert daemon.wait(20) == 0, log.read_text()
    assert "xdp" not in network.director.run("ip link show eth0")
