"""A daemon that is not root, and what it gives up when it has started."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from lvskit_datapath_xdp.loader.privileges import CAPABILITIES
from test_xdp_life_crash import Peer
from xdp_daemon import Daemon, capabilities, program_on, service
from xdp_network import PORT, SERVERS, VIP6

pytestmark = pytest.mark.integration
NOBODY = 65534
NEEDED = sum(1 << CAPABILITIES[name] for name in ("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF"))
_AMBIENT = "+net_admin,+net_raw,+bpf,+perfmon"


class Nobody(NamedTuple):
    """A user without rights: a command that becomes it, and a directory of its own."""

    prefix: tuple[str, ...]
    place: Path


@pytest.fixture
def nobody(network) -> Iterator[Nobody]:
    if not shutil.which("setpriv"):
        pytest.skip("needs the command `setpriv` (util-linux)")
    place = Path(tempfile.mkdtemp())
    (place / "bpf").mkdir()
    network.switch.run(f"mount -t bpf bpf {place}/bpf")
    try:
        for each in (place, place / "bpf"):
            os.chown(each, NOBODY, NOBODY)
        become = f"""
            exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --no-new-privs \
                --bounding-set=-all,{_AMBIENT} --inh-caps=-all,{_AMBIENT} \
                --ambient-caps=-all,{_AMBIENT} "$@"
        """
        script = f"{readable(place)}\n{become}"
        yield Nobody(("unshare", "-m", "sh", "-ec", script, "sh"), place)
    finally:
        network.switch.run(f"umount --lazy {place}/bpf")
        shutil.rmtree(place)


def readable(place: Path) -> str:
    """Return commands that let everybody read the Python that runs this, in a mount namespace.

    Interpreters in root's home, and environments in a folder of root's own, are not for others.
    """
    closed = {}
    for kept in dict.fromkeys((Path(sys.base_prefix), Path(sys.prefix))):
        above = [each for each in reversed(kept.parents) if not each.stat().st_mode & stat.S_IXOTH]
        if above:
            closed[kept] = above[0]
    first, then = [], []
    for number, kept in enumerate(closed):
        aside = place / f"python{number}"
        first.append(f"mkdir {aside}; mount --bind {kept} {aside}")
        then.append(f"mkdir -p {kept}; mount --move {aside} {kept}; rmdir {aside}")
    covers = [f"mount -t tmpfs -o mode=755 tmpfs {top}" for top in dict.fromkeys(closed.values())]
    return "\n".join([*first, *covers, *then])


def test_capabilities_are_enough_and_few_remain(network, nobody):
    def start() -> Daemon:
        pins = nobody.place / "bpf" / "pins"
        return Daemon(
            network, pins, [service()], prefix=nobody.prefix, place=nobody.place, mode="native"
        ).ready()

    daemon = start()
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
    assert capabilities(daemon.process) == NEEDED
    peers = [Peer(network)]
    # What is added later finds its way, too.
    daemon.call("add_service", service={"tcp": f"[{VIP6}]:{PORT}", "persistent": 100})
    daemon.call("add_server", service={"tcp": f"[{VIP6}]:{PORT}"}, server={"address": SERVERS[0]})
    peers.append(Peer(network, VIP6))
    for peer in peers:
        peer.ask(100_000)
    daemon.kill()
    peers[0].ask(100_000)
    daemon = start()
    assert daemon.connections().keys() == {peers[0].name}
    peers[0].ask(100_000)
    assert capabilities(daemon.process) == NEEDED
    daemon.stop()
    assert program_on(network) == ""
    assert not (nobody.place / "bpf" / "pins").exists()


def test_root_gives_up_the_rest_too(network, bpffs):
    daemon = Daemon(network, bpffs / "pins", [service()]).ready()
    assert capabilities(daemon.process) == NEEDED
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    Peer(network).ask(100_000)
    daemon.stop()
    assert not (bpffs / "pins").exists()
