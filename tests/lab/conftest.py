"""Labs to test in: real network namespaces, root's or within a user namespace."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lvskit.lab import Lab, possible

# What makes a host different from what it was: everything that `realserver` and `vip` touch.
SNAPSHOT = """
import json, os, time
from pathlib import Path
from pyroute2 import IPRoute

def plain(message, *drop):
    attributes = {name: repr(value) for name, value in message["attrs"] if name not in drop}
    fields = {k: v for k, v in message.items() if k not in ("attrs", "header", "index", "event")}
    return json.dumps([fields, attributes], sort_keys=True, default=repr)

found = {}
for family in ("ipv4", "ipv6"):
    for path in sorted(Path("/proc/sys/net", family, "conf").rglob("*")):
        # A kernel's own tunnel device has IPv6 settings from when it is first up, for ever.
        if path.parent.name in ("tunl0", "ip6tnl0", "sit0") and family == "ipv6":
            continue
        if path.is_file() and path.name != "stable_secret":
            found[f"sysctl {path}"] = path.read_text()
with IPRoute() as ipr:
    found["links"] = sorted(f"{m.get_attr('IFLA_IFNAME')} {m['flags']} {m.get_attr('IFLA_MTU')}"
                            for m in ipr.get_links())
    for family in (2, 10):
        found[f"addresses {family}"] = sorted(
            plain(m, "IFA_CACHEINFO") for m in ipr.get_addr(family=family))
        found[f"rules {family}"] = sorted(plain(m) for m in ipr.get_rules(family=family))
        found[f"routes {family}"] = sorted(
            plain(m, "RTA_CACHEINFO") for m in ipr.get_routes(family=family))
print(json.dumps(found))
"""

Snapshot = Callable[[str], dict[str, Any]]
Lvskit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def lab_possible() -> None:
    """Skip, with the reason, where there can be no lab."""
    if reason := possible():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Hosts and their servers; no VIPs, no real servers, no director."""
    options = {"vips": False, "realservers": False, "start_director": False}
    with Lab.up(f"test-{os.getpid()}", **options) as lab:
        yield lab


@pytest.fixture(scope="module")
def snapshot(lab: Lab) -> Snapshot:
    """Tells all the network settings of a host."""

    def take(host: str) -> dict[str, Any]:
        done = lab.exec(host, [sys.executable, "-c", SNAPSHOT], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return take


@pytest.fixture(scope="module")
def pristine(snapshot: Snapshot) -> Snapshot:
    """Tells what a host was like before the first test that asked."""
    return functools.cache(snapshot)


@pytest.fixture
def lvskit(lab: Lab, snapshot: Snapshot, pristine: Snapshot) -> Iterator[Lvskit]:
    """Runs `lvskit …` on a host of the lab; in the end the host must be as it was in the beginning.

    Real servers are set down after the test, which thereby tests `down` each time.
    """
    used = set()

    def run(host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        pristine(host)
        used.add(host)
        command = [sys.executable, "-m", "lvskit", *arguments]
        return lab.exec(host, command, capture_output=True, text=True, timeout=30)

    yield run
    for host in used:
        done = run(host, "realserver", "down")
        assert done.returncode == 0, done.stderr
        assert snapshot(host) == pristine(host)


def tun_usable() -> bool:
    """Say whether this process may open /dev/net/tun."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def kernel_tunnels(lab: Lab) -> bool:
    """Say whether this kernel has tunnel devices of its own for both families."""
    program = """
from lvskit.hostsetup.netlink import Netlink
from lvskit.hostsetup.tunnel import kernel_has
with Netlink() as kernel:
    print(all(kernel_has(kind, kernel) for kind in ("ipip", "ip6tnl")))
"""
    return lab.exec("rs1", [sys.executable, "-c", program], capture_output=True).stdout == b"True\n"


@pytest.fixture(params=["kernel", "tun", "veth"])
def way(request: pytest.FixtureRequest, kernel_tunnels: bool) -> str:
    """Each way to take packets out of the tunnel."""
    if request.param == "kernel" and not kernel_tunnels:
        pytest.skip("this kernel has no ipip and ip6_tunnel")
    if request.param == "tun" and not tun_usable():
        pytest.skip("/dev/net/tun cannot be opened here")
    value: str = request.param
    return value
