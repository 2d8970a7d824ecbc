"""What has to be so on a real server, as steps in the order of doing."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, cast

from lvskit.errors import ConfigError
from lvskit.hostsetup.attached import Attached, check_way, loopback
from lvskit.hostsetup.changes import (
    Address,
    Rule,
    Sysctl,
    devices_with_rp_filter,
    read_sysctl,
)
from lvskit.hostsetup.netlink import IPAddress, Netlink, family_of
from lvskit.hostsetup.routes import Routes, free_table, has_rules
from lvskit.hostsetup.state import AnyStep, State
from lvskit.hostsetup.tunnel import (
    DEVICE,
    Decapsulator,
    KernelTunnel,
    Way,
    kernel_has,
    tun_usable,
)

_Step = TypeVar("_Step", bound=AnyStep)


class Plan:
    """What has to be so on a real server; steps that were done before come as they were.

    Args:
        kernel: of this host.
        state: what was done before, and the VIPs and directors that are wanted now.
        path: the file of the state.
        via: how packets come out of the tunnel; a name that is no `Way` is a plugin's.
        interface: for ways of plugins, where tunnel packets come in; None: the one towards the
            directors, or towards the VIPs.
        tunnel_mtu: the largest packet that passes the tunnel, if that is known.

    Raises:
        ConfigError: a way that does not go together with what was done before.
        UnknownPlugin: a way that no plugin has.
    """

    def __init__(
        self,
        kernel: Netlink,
        state: State,
        path: Path,
        *,
        via: str,
        interface: str | None,
        tunnel_mtu: int | None,
    ) -> None:
        self._kernel = kernel
        self._state = state
        self._attached = [step for step in state.steps if isinstance(step, Attached)]
        self._via = self._chosen(via)
        if interface and isinstance(self._via, Way):
            raise ConfigError("an interface is chosen for ways of plugins alone, as --via xdp")
        self._interface = interface
        self._path = path
        self._tunnel_mtu = tunnel_mtu
        self._known = {step.key: step for step in state.steps}

    def _chosen(self, via: str) -> str:
        """Return the way: a `Way`, or the name of a plugin's."""
        if via == Way.AUTO and self._attached:
            return self._attached[0].way
        way = Way(via) if via in list(Way) else via
        wanted = set() if isinstance(way, Way) else {way}
        if self._state.steps and wanted != {step.way for step in self._attached}:
            raise ConfigError(
                "this real server takes packets out of the tunnel in another way since it was set"
                " up; to change that, run `lvskit realserver down` first"
            )
        if not isinstance(way, Way):
            check_way(way)
        return way

    def steps(self, vips: Sequence[IPAddress]) -> list[AnyStep]:
        """Return all steps, for all VIPs of the state, in the order of doing.

        The VIPs come last: from then on this host would answer ARP for them, had the steps
        before not silenced it.
        """
        addresses = [ipaddress.ip_address(vip) for vip in self._state.vips]
        families = sorted({family_of(address) for address in addresses})
        tunnels = {family: self._tunnels(family) for family in families}
        devices = {family: found[0][1] for family, found in tunnels.items()}
        steps: list[AnyStep] = []
        if socket.AF_INET in families:
            found = tunnels[socket.AF_INET]
            names = [name for step, name in found if not isinstance(step, Attached)]
            steps += [*self._arp(), *(self._reverse_path(names) if names else [])]
        for found in tunnels.values():
            steps += [step for step, _ in found if step not in steps]
        if socket.AF_INET in families:
            steps += self._tunnel_filters([step for step, _ in tunnels[socket.AF_INET]])
        routes = {
            family: self._routes(family) for family in families if has_rules(self._kernel, family)
        }
        steps += routes.values()
        for address in addresses:
            if family_of(address) in routes:
                table = routes[family_of(address)].table
                steps.append(self._as_known(Rule(address=str(address), table=table)))
        for address in addresses:
            self._check_holder(address, devices[family_of(address)])
            wanted = Address(address=str(address), device=devices[family_of(address)])
            steps.append(self._as_known(wanted))
        return steps

    def _as_known(self, step: _Step) -> _Step:
        return cast(_Step, self._known.get(step.key, step))

    def _arp(self) -> list[AnyStep]:
        conf = "net/ipv4/conf/all"
        steps: list[AnyStep] = []
        for name, least, why in (
            ("arp_ignore", 1, "answer ARP only for the asked device's own addresses"),
            ("arp_announce", 2, "never name a VIP as the sender of ARP requests"),
        ):
            # Higher values are stricter still, and somebody's choice.
            if int(read_sysctl(f"{conf}/{name}") or "0") < least:
                steps.append(Sysctl.wanted(f"{conf}/{name}", str(least), why))
        return steps

    def _reverse_path(self, tunnels: list[str]) -> list[AnyStep]:
        """The filter that counts is the stricter of "all" and the device's own."""
        setting = "net/ipv4/conf/all/rp_filter"
        strict = read_sysctl(setting) or "0"
        if strict == "0":
            return []
        steps: list[AnyStep] = []
        for name in devices_with_rp_filter():
            own = f"net/ipv4/conf/{name}/rp_filter"
            if name not in tunnels and int(read_sysctl(own) or "0") < int(strict):
                why = f"keep the reverse path filter of {name} as it is"
                steps.append(Sysctl.wanted(own, strict, why))
        why = "let each device's own reverse path filter count"
        return [*steps, Sysctl.wanted(setting, "0", why)]

    def _tunnel_filters(self, steps: Sequence[AnyStep]) -> list[AnyStep]:
        why = "accept clients' packets on it, though the way back is by another device"
        # lvskit's own device is made without a filter.
        return [
            Sysctl.wanted(f"net/ipv4/conf/{step.name}/rp_filter", "0", why)
            for step in steps
            if isinstance(step, KernelTunnel)
        ]

    def _tunnels(self, family: int) -> list[tuple[AnyStep, str]]:
        """Return the steps that take packets of one family out of the tunnel, with the devices."""
        way = self._way(family)
        if not isinstance(way, Way):
            device = loopback(self._kernel)
            place = self._path.stem
            attached = [Attached(way=way, interface=i, place=place) for i in self._interfaces()]
            return [(self._as_known(step), device) for step in attached]
        if way is not Way.KERNEL:
            own = Decapsulator(way=way, state=str(self._path))
            return [(self._as_known(own), DEVICE)]
        found: list[KernelTunnel] = []
        for director in self._state.directors:
            sender = ipaddress.ip_address(director)
            kind = _kind(family, family_of(sender))
            name = f"lvskit{'4' if sender.version == 4 else '6'}{kind[0]}{self._number(director)}"
            found.append(KernelTunnel.wanted(self._kernel, kind, name=name, remote=director))
        if not self._state.directors:
            kinds = ["ipip"] if family == socket.AF_INET else ["ip6tnl", "sit"]
            found += [
                KernelTunnel.wanted(self._kernel, kind)
                for kind in kinds
                if kind != "sit" or kernel_has(kind, self._kernel)
            ]
        return [(step, step.name) for step in map(self._as_known, found)]

    def _interfaces(self) -> list[str]:
        """Return where tunnel packets come in."""
        found = {step.interface for step in self._attached}
        found |= {self._interface} if self._interface else set()
        for end in () if found else self._state.directors or self._state.vips:
            link = self._kernel.link_towards(ipaddress.ip_address(end))
            found |= {link.name} if link else set()
        if not found:
            raise ConfigError("cannot tell where tunnel packets come in: name it by --interface")
        return sorted(found)

    def _number(self, director: str) -> int:
        return self._state.directors.index(director)

    def _way(self, family: int) -> str:
        if not isinstance(self._via, Way):
            return self._via
        kinds = {_kind(family, family_of(ipaddress.ip_address(d))) for d in self._state.directors}
        kinds = kinds or {_kind(family, family)}
        lacking = [kind for kind in sorted(kinds) if not kernel_has(kind, self._kernel)]
        if self._via is Way.KERNEL and lacking:
            raise ConfigError(
                f"this kernel has no tunnel device of the kind {', '.join(lacking)}; leave out"
                " --via, and lvskit brings its own"
            )
        if self._via is not Way.AUTO:
            return self._via
        known = self._known.get("decapsulator")
        if isinstance(known, Decapsulator):
            return known.way
        if not lacking:
            return Way.KERNEL
        return Way.TUN if tun_usable() else Way.VETH

    def _routes(self, family: int) -> Routes:
        known = self._known.get(("routes", family))
        if isinstance(known, Routes):
            known.tunnel_mtu = self._tunnel_mtu or known.tunnel_mtu
            return known
        table = free_table(self._kernel, family)
        return Routes(family=family, table=table, tunnel_mtu=self._tunnel_mtu)

    def _check_holder(self, address: IPAddress, device: str) -> None:
        found = self._kernel.holder(address)
        if found is None or found[1].name == device or found[1].loopback:
            return
        held, link = found
        raise ConfigError(
            f"{address} is on {link.name} already, a device that answers ARP, so clients would"
            f" find this host beside the director; remove it first:"
            f" ip addr del {held.address}/{held.prefix} dev {link.name}"
        )


def _kind(inner: int, outer: int) -> str:
    if outer == socket.AF_INET6:
        return "ip6tnl"
    return "ipip" if inner == socket.AF_INET else "sit"
