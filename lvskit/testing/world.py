"""The setting of the recordings on the memory datapath: one director facing a wire.

The README beside the recordings describes the setting: addresses, routes, marks.
`DirectorWorld` is what it is on any datapath.
"""

from __future__ import annotations

import io
import ipaddress
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from lvskit.cli import lvsadm
from lvskit.control.api import Control
from lvskit.core.director import Director
from lvskit.datapath.memory import DirectorHost, Mark, Network
from lvskit.datapath.reassembly import Reassembler
from lvskit.errors import ConfigError, UnknownPlugin
from lvskit.plugins import Plugins
from lvskit.testing.kernel_timers import KernelClock
from lvskit.testing.wire import Tree, emitted

TABLE_SIZE = 4096
"""Of the kernel that was recorded; listings show it."""
ADDRESSES = (
    "192.168.1.175/24",
    "192.168.1.176/32",
    "192.168.1.177/32",
    "2001:db8::175/64",
    "2001:db8::176/128",
)
"""Of the director, in the order in which it got them."""
UNREACHABLE = "10.250.0.0/16"
"""A network to which it has no way."""
_GATEWAY = {
    4: ipaddress.ip_address("192.168.1.1").packed,
    6: ipaddress.ip_address("2001:db8::1").packed,
}
_PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "sctp": 132}
_METHODS = {"tunnel": "Tunnel", "local": "Local", "droute": "Route", "masq": "Masq"}
_HOSTS = {"127.0.0.1": "localhost", "192.168.1.14": "realserver14.example.com rs14"}
INERT = frozenset(
    {
        "backup_only", "conntrack", "ignore_tunneled", "lblc_expiration", "lblcr_expiration",
        "nat_icmp_send", "run_estimation", "snat_reroute", "sync_persist_mode", "sync_ports",
        "sync_qlen_max", "sync_refresh_period", "sync_retries", "sync_sock_size",
        "sync_threshold", "sync_version",
    }
)  # fmt: skip
"""The kernel's settings that a director has no use for: nobody reads them."""


class Unsupported(Exception):
    """A scenario needs something that is not installed or not there yet: the reason."""


class World(Protocol):
    """A director in the setting of a scenario, on some datapath."""

    def set_time(self, now: float) -> None:
        """Let time pass until `now`, seconds since the start."""

    def setting(self, name: str, value: object) -> None:
        """Change one of the kernel's settings; `Unsupported` where that cannot be."""

    def settings(self) -> dict[str, str]:
        """Return what the kernel's settings read as, by their whole names."""

    def ipvsadm(self, argv: list[str], stdin: str) -> Tree:
        """Run a command; return `rc`, `stdout`, `stderr`, and `refused`: why, if it was."""

    def send(self, packet: bytes) -> list[Tree]:
        """Let `packet` arrive; return what the director emits."""

    def emitted(self) -> list[Tree]:
        """Return what was emitted since the last call."""

    def services(self) -> dict[str, dict[str, list[Any]]]:
        """Return services and servers with their counts."""

    def conns(self) -> list[Tree]:
        """Return the connection table."""

    def unpack(self) -> None:
        """Let the director's host unpack IP in IP from now on."""

    def timers_fired(self) -> bool:
        """Whether any entry's time has come so far."""

    def carried(self) -> dict[str, int]:
        """Return packets by the way in which they were carried, where there are several."""

    def close(self) -> None:
        """Take it all down."""


class DirectorWorld:
    """A director on some datapath, and the commands and questions of a scenario's steps.

    Args:
        director: on a datapath, in the setting of `scenario`.
        scenario: whose settings it gets.
        plugins: what is installed.
        now: the time on that datapath.
        changed: called after commands that changed services or servers; refresh: before each; see
            `Control`.
        clock: let timers run as late as the kernel's; None = exactly on time.
    """

    def __init__(
        self,
        director: Director,
        scenario: Tree,
        plugins: Plugins,
        now: Callable[[], float],
        *,
        changed: Callable[[], None] = lambda: None,
        refresh: Callable[..., None] = lambda *, deadlines: None,
        clock: KernelClock | None = None,
    ) -> None:
        self.director = director
        if clock is not None:
            clock.rule(director)
        self.missing = ""
        self._now = now
        self.control = Control(director, plugins, now, changed, refresh=refresh)
        for name, value in scenario.get("sysctls", {}).items():
            self.setting(name, value)

    # --- what a step does ---

    def setting(self, name: str, value: object) -> None:
        """Set one of the kernel's settings; a value that cannot be is ignored, as sysctl does."""
        group, _, short = name.rpartition(".")
        if group == "net.ipv4.vs" and short not in INERT:
            with suppress(ValueError):
                self._set(short, int(str(value)))
        elif name not in ("net.ipv4.ip_default_ttl", "net.ipv4.vs." + short):
            raise Unsupported(f"setting {name}")

    def _set(self, name: str, value: int) -> None:
        try:
            self.call("set_settings", {"settings": {name: value}})
        except UnknownPlugin as err:
            raise Unsupported(self.missing) from err
        except ConfigError:
            pass

    def ipvsadm(self, argv: list[str], stdin: str) -> Tree:
        """Run a command; return its exit status, output, and what was missing for it."""
        self.missing = ""
        out, err = io.StringIO(), io.StringIO()
        status = lvsadm.run(
            argv,
            client=lambda: self,
            stdin=io.StringIO(stdin),
            stdout=out,
            stderr=err,
            prog="ipvsadm",
            names=lvsadm.Names(hosts=_HOSTS),
        )
        complaint = err.getvalue()
        reason = self.missing or ("lvskit" in complaint and complaint.strip().splitlines()[-1])
        return {
            "rc": status,
            "stdout": out.getvalue(),
            "stderr": complaint,
            "refused": status and reason,
        }

    def call(self, method: str, params: object = None) -> Any:
        """Pass a command on to the director, and remember what no plugin is installed for."""
        try:
            return self.control.call(method, params)
        except UnknownPlugin as err:
            self.missing = f"no {err.kind} {err.name!r} is installed"
            raise

    # --- what there is ---

    def settings(self) -> dict[str, str]:
        """Return what the kernel's settings read as, by their whole names."""
        rows = self.control.call("settings")
        return {f"net.ipv4.vs.{row['name']}": str(row["value"]) for row in rows}

    def services(self) -> dict[str, dict[str, list[Any]]]:
        """Return services and servers with their counts, in the scheduler's order."""
        self.director.expire(self._now())
        found: dict[str, dict[str, list[Any]]] = {}
        for service in self.director.services:
            found[service.name.removesuffix(" IPv6")] = {
                server.name: [
                    _METHODS[server.settings.method],
                    server.weight,
                    server.activeconns,
                    server.inactconns,
                ]
                for server in service.servers
            }
        return found

    def conns(self) -> list[Tree]:
        """Return the connection table, sorted as recordings are."""
        rows = [
            {
                "proto": row["protocol"],
                "client": row["client"],
                "virtual": row["virtual"],
                "rs": row["server"],
                "state": row["state"],
                "expires": max(int(row["expires_s"]), 0),
            }
            for row in self.control.call("connections")
        ]
        return sorted(rows, key=lambda r: (r["proto"], r["client"], r["virtual"], r["rs"]))

    def timers_fired(self) -> bool:
        """Whether any connection has ended or any template been re-armed so far."""
        return self.director.wheel.fired > 0

    def carried(self) -> dict[str, int]:
        """Return nothing: packets go one way."""
        return {}


class MemoryWorld(DirectorWorld):
    """A director on the memory datapath, set up as a scenario's `director` says.

    Args:
        scenario: whose setting it is.
        plugins: what is installed.
        clock: let timers run as late as the kernel's; None = exactly on time.
    """

    def __init__(self, scenario: Tree, plugins: Plugins, clock: KernelClock | None = None) -> None:
        setting = scenario["director"]
        self.network = Network()
        self._seen: list[tuple[bytes, str]] = []
        self.network.stray = self._see
        self.host = DirectorHost(
            self.network, ADDRESSES, gateway=_GATEWAY, mtu=setting.get("mtu", 1500)
        )
        if clock is not None:
            self.host.reassembler = Reassembler(due=clock.due)
        self.host.unreachable.append(ipaddress.ip_network(UNREACHABLE))
        for line in setting.get("routes", []):
            self._route(line)
        for rule in setting.get("marks", []):
            protocol = _PROTOCOLS[rule["proto"]] if "proto" in rule else 0
            ports = frozenset(rule.get("dports", ()))
            self.host.marks.append(Mark(rule["dst"], rule["mark"], protocol, ports))
        director = self.host.director = Director(plugins, self.host.routes, size=TABLE_SIZE)
        super().__init__(director, scenario, plugins, lambda: self.network.now, clock=clock)

    def _route(self, line: str) -> None:
        """Carry out one line of an `ip` batch file, of the kinds that recordings have."""
        words = line.split()
        if words[:2] == ["addr", "del"]:
            self.host.local.remove(ipaddress.ip_network(words[2]))
        elif words[:3] == ["route", "add", "local"]:
            self.host.local.append(ipaddress.ip_network(words[3]))
        elif words[:2] != ["route", "add"] or words[-2:] != ["via", "192.168.1.1"]:
            raise Unsupported(f"route command {line!r}")

    def set_time(self, now: float) -> None:
        """Let time pass until `now`, seconds since the start."""
        while (due := self.host.reassembler.next_timer()) is not None and due <= now:
            self._advance(due)
        self._advance(now)

    def _advance(self, now: float) -> None:
        self.network.advance(now - self.network.now)
        self.director.expire(self.network.now)
        self.host.expire()

    def unpack(self) -> None:
        """Let the director's host unpack IP in IP from now on."""
        self.host.unpacks = True

    def send(self, packet: bytes) -> list[Tree]:
        """Let `packet` arrive; return what the director emits."""
        self.host.input(packet)
        return self.emitted(packet)

    def emitted(self, sent: bytes = b"") -> list[Tree]:
        """Return what was emitted since the last call."""
        self.network.run()
        seen, self._seen = self._seen, []
        return [emitted(packet, next_hop, sent) for packet, next_hop in seen]

    def _see(self, packet: bytes, next_hop: bytes) -> None:
        self._seen.append((packet, str(ipaddress.ip_address(next_hop))))

    def close(self) -> None:
        """Do nothing: it is all memory."""
