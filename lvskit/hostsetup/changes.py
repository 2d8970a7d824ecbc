"""What host set-up does, step by step: each step can be told, done, found done, and undone.

Steps are kept in a state file (`lvskit.hostsetup.state`), so that `down` undoes exactly what
`up` did, whatever has become of the process that did it.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lvskit.errors import DatapathError
from lvskit.hostsetup.netlink import IPAddress, Netlink, family_of

_SYSCTL = Path("/proc/sys")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change to this host.

    Attributes:
        text: what it does, for a person.
        command: what one would type to do the same; empty where no command does.
    """

    text: str
    command: str = ""

    def __str__(self) -> str:
        return f"{self.text}: {self.command}" if self.command else self.text


class Step(msgspec.Struct, tag_field="step", tag=True, kw_only=True):
    """One thing to be done, and what is needed to undo it."""

    @property
    def key(self) -> Any:
        """What the step is about: two steps of one key are the same step."""
        raise NotImplementedError

    def changes(self) -> list[Change]:
        """Tell what `apply` does."""
        raise NotImplementedError

    def done(self, kernel: Netlink) -> bool:
        """Say whether the host is so already."""
        raise NotImplementedError

    def held_by(self, kernel: Netlink, devices: list[int]) -> bool:
        """Say whether it would be undone by the removal of one of these devices, by index."""
        return False

    def apply(self, kernel: Netlink) -> None:
        """Do it."""
        raise NotImplementedError

    def undo(self, kernel: Netlink, *, dry_run: bool) -> list[Change]:
        """Undo it, as far as there is anything left to undo; tell what was done."""
        raise NotImplementedError


def read_sysctl(key: str) -> str | None:
    """Return a kernel setting, `net/ipv4/…`; None if there is none of that name."""
    try:
        return (_SYSCTL / key).read_text().strip()
    except FileNotFoundError:
        return None


def write_sysctl(key: str, value: str) -> None:
    """Change a kernel setting.

    Raises:
        DatapathError: the kernel refused.
    """
    try:
        (_SYSCTL / key).write_text(value)
    except OSError as err:
        raise DatapathError(
            f"cannot set {_sysctl_name(key)} to {value}: {err.strerror}; run it as root, on a host"
            " whose /proc/sys may be written"
        ) from err


def _sysctl_name(key: str) -> str:
    # sysctl(8) takes slashes as well, and must where a device's name has a dot.
    return key if "." in key else key.replace("/", ".")


class Sysctl(Step, kw_only=True):
    """A kernel setting.

    Attributes:
        before: the value to go back to; None if the setting comes and goes with its device.
        why: the reason, as the end of a sentence.
    """

    setting: str
    value: str
    before: str | None
    why: str

    @classmethod
    def wanted(cls, setting: str, value: str, why: str) -> Sysctl:
        """Return the step that gives `setting` this value, and remembers the present one."""
        return cls(setting=setting, value=value, before=read_sysctl(setting), why=why)

    @property
    def key(self) -> Any:
        """The setting."""
        return "sysctl", self.setting

    def changes(self) -> list[Change]:
        """One line."""
        return [Change(text=self.why, command=self._command(self.value))]

    def done(self, kernel: Netlink) -> bool:
        """The setting has the value."""
        return read_sysctl(self.setting) == self.value

    def apply(self, kernel: Netlink) -> None:
        """Write it."""
        write_sysctl(self.setting, self.value)

    def undo(self, kernel: Netlink, *, dry_run: bool) -> list[Change]:
        """Write the old value, unless somebody else has changed the setting since."""
        now = read_sysctl(self.setting)
        if self.before is None or now in (None, self.before):
            return []
        name = _sysctl_name(self.setting)
        if now != self.value:
            return [Change(text=f"left {name} alone: it was changed to {now} since")]
        if not dry_run:
            write_sysctl(self.setting, self.before)
        return [Change(text=f"put {name} back", command=self._command(self.before))]

    def _command(self, value: str) -> str:
        return f"sysctl -w {_sysctl_name(self.setting)}={value}"


class Address(Step, kw_only=True):
    """A VIP on the device that takes its packets out of the tunnel."""

    address: str
    device: str

    @property
    def key(self) -> Any:
        """The address."""
        return "address", self.address

    @property
    def _ip(self) -> IPAddress:
        return ipaddress.ip_address(self.address)

    def changes(self) -> list[Change]:
        """One line."""
        return [
            Change(
                text=f"take {self.address} as an own address, on a device that answers no ARP",
                command=self._command("add"),
            )
        ]

    def done(self, kernel: Netlink) -> bool:
        """This host holds the address."""
        return kernel.holder(self._ip) is not None

    def held_by(self, kernel: Netlink, devices: list[int]) -> bool:
        """The address is on one of them."""
        found = kernel.holder(self._ip)
        return found is not None and found[1].index in devices

    def apply(self, kernel: Netlink) -> None:
        """Add it."""
        link = kernel.link(self.device)
        if link is None:
            raise DatapathError(f"the device {self.device} is gone; run `up` again")
        kernel.add_address(self._ip, self._ip.max_prefixlen, link)

    def undo(self, kernel: Netlink, *, dry_run: bool) -> list[Change]:
        """Remove it, if it is still where it was put."""
        found = kernel.holder(self._ip)
        if found is None or found[1].name != self.device:
            return []
        if not dry_run:
            kernel.delete_address(found[0])
        return [Change(text=f"give up {self.address}", command=self._command("del"))]

    def _command(self, verb: str) -> str:
        version = " -6" if self._ip.version == 6 else ""
        nodad = " nodad" if version and verb == "add" else ""
        prefix = self._ip.max_prefixlen
        return f"ip{version} addr {verb} {self.address}/{prefix} dev {self.device}{nodad}"


class Rule(Step, kw_only=True):
    """The rule that sends a VIP's replies along the routes of their own table."""

    address: str
    table: int

    @property
    def key(self) -> Any:
        """The address."""
        return "rule", self.address

    @property
    def _ip(self) -> IPAddress:
        return ipaddress.ip_address(self.address)

    def changes(self) -> list[Change]:
        """One line."""
        text = f"route the replies from {self.address}, and nothing else, by table {self.table}"
        return [Change(text=text, command=self._command("add"))]

    def done(self, kernel: Netlink) -> bool:
        """The rule is there."""
        return (self.address, self.table, self.table) in kernel.rules(family_of(self._ip))

    def apply(self, kernel: Netlink) -> None:
        """Add it."""
        kernel.rule("add", self._ip, self.table, self.table)

    def undo(self, kernel: Netlink, *, dry_run: bool) -> list[Change]:
        """Remove it."""
        if not self.done(kernel):
            return []
        if not dry_run:
            kernel.rule("del", self._ip, self.table, self.table)
        text = f"route the replies from {self.address} like everything else"
        return [Change(text=text, command=self._command("del"))]

    def _command(self, verb: str) -> str:
        version = " -6" if self._ip.version == 6 else ""
        source = f"from {self.address}/{self._ip.max_prefixlen}"
        return f"ip{version} rule {verb} {source} lookup {self.table} priority {self.table}"


def devices_with_rp_filter() -> list[str]:
    """Return every device, and "default", that has a reverse path filter of its own."""
    return sorted(set(os.listdir(_SYSCTL / "net/ipv4/conf")) - {"all"})
