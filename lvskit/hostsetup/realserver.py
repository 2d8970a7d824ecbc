"""`lvskit realserver`: make this host take a VIP's packets out of the director's tunnel.

The recipe is the one of every LVS-TUN real server: a tunnel device, the VIP on a device that
answers no ARP, arp_ignore and arp_announce, no reverse path filter on the tunnel device; and
routes for the replies whose MSS fits the tunnel (`lvskit.hostsetup.routes`).
"""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, cast

from lvskit.errors import ConfigError
from lvskit.hostsetup.changes import (
    Address,
    Change,
    Rule,
    Step,
    Sysctl,
    devices_with_rp_filter,
    read_sysctl,
)
from lvskit.hostsetup.netlink import IPAddress, Netlink, family_of
from lvskit.hostsetup.routes import Routes, check_tunnel_mtu, free_table, has_rules, no_rules
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


def up(
    vips: Sequence[str],
    directors: Sequence[str] = (),
    *,
    via: Way = Way.AUTO,
    tunnel_mtu: int | None = None,
    dry_run: bool = False,
) -> list[Change]:
    """Make this host a real server of these VIPs, besides those that it serves already.

    What is done already is not done again, so that a second call repairs what was lost since:
    a decapsulator that ended, or routes that follow a changed default route.

    Args:
        vips: the virtual addresses.
        directors: take tunnel packets of these addresses only; of any if empty.
        via: how packets come out of the tunnel; AUTO takes the kernel's devices, else a TUN
            device, else a veth pair.
        tunnel_mtu: the largest packet that passes the tunnel, if the way from the director is
            narrower than this host's own devices.
        dry_run: only tell.

    Raises:
        ConfigError: a value that cannot be accepted.
        DatapathError: this host cannot do it, or not for this user; nothing stays changed.
    """
    addresses = [_unicast(vip, "VIP") for vip in vips]
    if not addresses:
        raise ConfigError("no VIP given; name one or more, as in --vip 192.168.1.176")
    senders = [str(_unicast(director, "director")) for director in directors]
    check_tunnel_mtu(tunnel_mtu, {family_of(address) for address in addresses})
    path = State.path()
    state = State.load(path)
    if state.steps and senders and not state.directors:
        raise ConfigError(
            "this real server takes tunnel packets of any director since it was set up; to name"
            " directors, run `lvskit realserver down` first"
        )
    new_vips = [str(vip) for vip in addresses if str(vip) not in state.vips]
    new_directors = [sender for sender in senders if sender not in state.directors]
    with Netlink() as kernel:
        plan = _Plan(kernel, state, via, path, tunnel_mtu)
        state.vips += new_vips
        state.directors += new_directors
        steps = _pending(plan.steps(addresses), kernel)
        changes = [change for step in steps for change in _told(step, kernel)]
        families = sorted({family_of(address) for address in addresses if changes})
        changes += [no_rules(family) for family in families if not has_rules(kernel, family)]
        if not dry_run:
            _carry_out(steps, kernel, state, path)
    if not dry_run and (new_vips or new_directors):
        state.save(path)
        _reread(state)
    return changes


def down(*, dry_run: bool = False) -> list[Change]:
    """Undo what `up` did in this network namespace; nothing if it did nothing.

    Raises:
        DatapathError: the kernel refused.
    """
    path = State.path()
    state = State.load(path)
    changes: list[Change] = []
    if not state.steps:
        return changes
    with Netlink() as kernel:
        while state.steps:
            changes += state.steps.pop().undo(kernel, dry_run=dry_run)
            if not dry_run:
                # After each: what is interrupted can be finished by another `down`.
                state.save(path)
    return changes


def _unicast(text: str, what: str) -> IPAddress:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(
            f"{what} {text!r} is no IP address; write it as 192.168.1.176 or 2001:db8::176"
        ) from None
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise ConfigError(f"{what} {text} is no unicast address of a network")
    return address


def _pending(steps: list[AnyStep], kernel: Netlink) -> list[AnyStep]:
    pending = [step for step in steps if not step.done(kernel)]
    # The device of a decapsulator that has ended is made anew, and its addresses go with it.
    renewed = any(isinstance(step, Decapsulator) for step in pending)
    lost = [link.index for link in kernel.links() if renewed and link.name == DEVICE]
    return [step for step in steps if step in pending or step.held_by(kernel, lost)]


def _told(step: Step, kernel: Netlink) -> list[Change]:
    return step.commands(kernel) if isinstance(step, Routes) else step.changes()


def _carry_out(steps: list[AnyStep], kernel: Netlink, state: State, path: Path) -> None:
    """Do all steps or, if one fails, none; each is written down before it is done."""
    before = list(state.steps)
    vips, directors = list(state.vips), list(state.directors)
    try:
        for step in steps:
            known = [old for old in state.steps if old.key == step.key]
            if not known:
                state.steps.append(step)
            state.save(path)
            step.apply(kernel)
            state.save(path)
    except BaseException:
        for step in reversed([step for step in state.steps if step not in before]):
            step.undo(kernel, dry_run=False)
        state.steps, state.vips, state.directors = before, vips, directors
        state.save(path)
        raise


def _reread(state: State) -> None:
    for step in state.steps:
        if isinstance(step, Decapsulator) and step.process is not None:
            step.process.signal(signal.SIGHUP)


class _Plan:
    """What has to be so on a real server; steps that were done before come as they were."""

    def __init__(
        self, kernel: Netlink, state: State, via: Way, path: Path, tunnel_mtu: int | None
    ) -> None:
        self._kernel = kernel
        self._state = state
        self._via = via
        self._path = path
        self._tunnel_mtu = tunnel_mtu
        self._known = {step.key: step for step in state.steps}

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
            names = [name for _, name in tunnels[socket.AF_INET]]
            steps += [*self._arp(), *self._reverse_path(names)]
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

    def _number(self, director: str) -> int:
        return self._state.directors.index(director)

    def _way(self, family: int) -> Way:
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
