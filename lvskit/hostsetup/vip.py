"""`lvskit vip`: the virtual address on the director itself, as the tutorial's ifconfig line."""

from __future__ import annotations

import ipaddress
from typing import Final

from lvskit.errors import ConfigError
from lvskit.hostsetup.announce import announce
from lvskit.hostsetup.changes import Change
from lvskit.hostsetup.netlink import IPAddress, Link, Netlink

_LONGEST_LABEL: Final = 15  # IFNAMSIZ less its terminating zero


def add_vip(address: str, interface: str | None = None, label: str | None = None) -> list[Change]:
    """Give this host a virtual address and announce it to the neighbours.

    An address that is there already is only announced again.

    Args:
        address: IPv4 or IPv6; it becomes a /32 or /128.
        interface: the device; by default the one in whose subnet the address is, or towards
            which its route leads.
        label: the alias that ifconfig shows; by default the device's name and `:0`. IPv6
            addresses have none.

    Raises:
        ConfigError: a value that cannot be accepted.
        DatapathError: not permitted, or the device is down.
    """
    vip = _parse(address)
    with Netlink() as kernel:
        found = kernel.holder(vip)
        if found is not None and interface in (None, found[1].name):
            announce(vip, found[1])
            return [_announced(vip, found[1])]
        if found is not None:
            held, link = found
            raise ConfigError(
                f"{vip} is on {link.name} already; remove it first: lvskit vip del {vip}"
                f" (ip addr del {held.address}/{held.prefix} dev {link.name})"
            )
        link = _device(kernel, vip, interface)
        label = _label(vip, link, label)
        kernel.add_address(vip, vip.max_prefixlen, link, label=label)
        announce(vip, link)
    command = f"ip addr add {vip}/{vip.max_prefixlen} dev {link.name}"
    command += f" label {label}" if label else ""
    command += " nodad preferred_lft 0" if vip.version == 6 else ""
    return [Change(text=f"take {vip} as an own address", command=command), _announced(vip, link)]


def delete_vip(address: str, interface: str | None = None) -> list[Change]:
    """Take a virtual address away from this host.

    Raises:
        ConfigError: this host does not hold it, or not as a VIP.
        DatapathError: not permitted.
    """
    vip = _parse(address)
    with Netlink() as kernel:
        found = kernel.holder(vip)
        if found is None or interface not in (None, found[1].name):
            where = f" on {interface}" if interface else ""
            raise ConfigError(f"this host does not hold {vip}{where}; see `ip addr`")
        held, link = found
        if held.prefix != vip.max_prefixlen:
            # With it the host's subnet would go, and perhaps the way to log in.
            raise ConfigError(
                f"{vip}/{held.prefix} on {link.name} is the host's own address, not a VIP (those"
                f" are /{vip.max_prefixlen}); if it shall go: ip addr del {vip}/{held.prefix} dev"
                f" {link.name}"
            )
        kernel.delete_address(held)
    command = f"ip addr del {vip}/{held.prefix} dev {link.name}"
    return [Change(text=f"give up {vip}", command=command)]


def _parse(address: str) -> IPAddress:
    try:
        vip = ipaddress.ip_address(address)
    except ValueError:
        raise ConfigError(
            f"{address!r} is no IP address; write it as 192.168.1.176 or 2001:db8::176, without"
            " a prefix length"
        ) from None
    if vip.is_multicast or vip.is_unspecified or vip.is_loopback:
        raise ConfigError(f"{address} is no unicast address of a network")
    return vip


def _device(kernel: Netlink, vip: IPAddress, interface: str | None) -> Link:
    if interface is None:
        link = kernel.link_towards(vip)
        if link is None:
            raise ConfigError(
                f"no device leads towards {vip}; name one with --interface: {_names(kernel)}"
            )
        return link
    named = kernel.link(interface)
    if named is None:
        raise ConfigError(f"no device {interface!r}; there are: {_names(kernel)}")
    return named


def _names(kernel: Netlink) -> str:
    return ", ".join(link.name for link in kernel.links() if not link.loopback)


def _label(vip: IPAddress, link: Link, label: str | None) -> str | None:
    if vip.version == 6:
        if label is not None:
            raise ConfigError(f"label {label!r} for {vip}: IPv6 addresses have no labels")
        return None
    label = label or f"{link.name}:0"
    # Linux takes any label; ifconfig shows only those that begin with the device's name.
    if not label.startswith(f"{link.name}:") or len(label) > _LONGEST_LABEL:
        raise ConfigError(
            f"label {label!r} is not allowed: it is the device's name, a colon and a few letters,"
            f" {_LONGEST_LABEL} characters at most, as in {link.name}:0"
        )
    return label


def _announced(vip: IPAddress, link: Link) -> Change:
    if vip.version == 4:
        command = f"arping -U -c 1 -I {link.name} {vip}"
        return Change(text="announce it to the neighbours by gratuitous ARP", command=command)
    return Change(text="announce it to the neighbours by an unsolicited neighbour advertisement")
