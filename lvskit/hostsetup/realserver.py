"""`lvskit realserver`: make this host take a VIP's packets out of the director's tunnel.

The recipe is the one of every LVS-TUN real server: a tunnel device, the VIP on a device that
answers no ARP, arp_ignore and arp_announce, no reverse path filter on the tunnel device; and
routes for the replies whose MSS fits the tunnel (`lvskit.hostsetup.routes`).
"""

from __future__ import annotations

import ipaddress
import signal
from collections.abc import Sequence
from pathlib import Path

from lvskit.errors import ConfigError
from lvskit.hostsetup.attached import Attached
from lvskit.hostsetup.changes import Change, Step
from lvskit.hostsetup.netlink import IPAddress, Netlink, family_of
from lvskit.hostsetup.plan import Plan
from lvskit.hostsetup.routes import Routes, check_tunnel_mtu, has_rules, no_rules
from lvskit.hostsetup.state import AnyStep, State
from lvskit.hostsetup.tunnel import DEVICE, Decapsulator, Way


def up(
    vips: Sequence[str],
    directors: Sequence[str] = (),
    *,
    via: str = Way.AUTO,
    interface: str | None = None,
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
            device, else a veth pair; a name that is no `Way` is a plugin's.
        interface: for ways of plugins, where tunnel packets come in; unless told, the one towards
            the directors, or towards the VIPs.
        tunnel_mtu: the largest packet that passes the tunnel, if the way from the director is
            narrower than this host's own devices.
        dry_run: only tell.

    Raises:
        ConfigError: a value that cannot be accepted.
        UnknownPlugin: a way that no plugin has.
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
        plan = Plan(kernel, state, path, via=via, interface=interface, tunnel_mtu=tunnel_mtu)
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
        for step in state.steps:
            if isinstance(step, Attached):
                step.serve(kernel, state.vips, state.directors)
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
