"""The nftables table that hands the packets of virtual services to the director, and no others.

One base chain at the input hook, behind every filter (which is where ip_vs stands, at
NF_INET_LOCAL_IN priority 99), looks packets up in sets, so their number of services costs nothing;
adding and removing services changes elements alone. Chains that change would empty the queue: the
kernel drops queued packets whenever a hook goes away (nf_queue_nf_hook_drop).
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Final

from lvskit.datapath.live import netlink, nftables
from lvskit.datapath.live.netlink import Message, Netlink, Refused
from lvskit.errors import DatapathError
from lvskit.settings import ServiceKey
from lvskit.types import ICMP, ICMPV6, TCP, UDP

PRIORITY: Final = 99  # ip_vs_ops: LOCAL_IN at NF_IP_PRI_NAT_SRC - 1
SNAPSHOT: Final = 128  # of a reply: its headers

_IN, _OUT, _REASSEMBLE = "input", "output", "reassemble"

# Types of keys as nft numbers them, six bits each in a concatenation.
_ADDRESS: Final = {4: 7, 6: 8}
_PROTOCOL, _PORT, _MARK, _NFPROTO = 12, 13, 19, 2
_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_ADDRESS_SIZE: Final = {4: 4, 6: 16}
# Offsets of the addresses in a header.
_SOURCE: Final = {4: 12, 6: 8}
_DESTINATION: Final = {4: 16, 6: 24}
_ERRORS: Final = ((ICMP, (3, 4, 11)), (ICMPV6, (1, 2, 3, 4)))

_SETS: Final = {
    "services4": (_ADDRESS[4] << 12 | _PROTOCOL << 6 | _PORT, 12),
    "services6": (_ADDRESS[6] << 12 | _PROTOCOL << 6 | _PORT, 24),
    "allports4": (_ADDRESS[4] << 6 | _PROTOCOL, 8),
    "allports6": (_ADDRESS[6] << 6 | _PROTOCOL, 20),
    "addresses4": (_ADDRESS[4], 4),
    "addresses6": (_ADDRESS[6], 16),
    "marks": (_NFPROTO << 12 | _PROTOCOL << 6 | _MARK, 12),
    "marked": (_NFPROTO << 6 | _PROTOCOL, 8),
    "errors": (_PROTOCOL << 6 | 14, 8),
}
_NUMBERS: Final = {name: number for number, name in enumerate(_SETS, start=1)}

Contents = dict[str, set[bytes]]


def _word(value: int) -> bytes:
    """Return one byte as a key's field: fields fill registers of 4 bytes."""
    return bytes((value, 0, 0, 0))


def contents(keys: Iterable[ServiceKey]) -> Contents:
    """Return what each set holds for the services `keys`.

    >>> found = contents([ServiceKey.of(6, bytes([10, 0, 0, 2]), 80)])
    >>> sorted(key.hex() for key in found["services4"])
    ['0a0000020600000000500000']
    """
    found: Contents = {name: set() for name in _SETS}
    found["errors"] = {_word(protocol) + _word(t) for protocol, types in _ERRORS for t in types}
    for key in keys:
        version = key.version
        if key.fwmark:
            family, mark = _word(_FAMILY[version]), key.fwmark.to_bytes(4, sys.byteorder)
            for protocol in (TCP, UDP):
                found["marks"].add(family + _word(protocol) + mark)
            for protocol in (TCP, UDP, ICMP if version == 4 else ICMPV6):
                found["marked"].add(family + _word(protocol))
            continue
        place = key.address + _word(key.protocol)
        if key.port:
            found[f"services{version}"].add(place + key.port.to_bytes(2, "big") + b"\0\0")
        else:
            found[f"allports{version}"].add(place)
        found[f"addresses{version}"].add(key.address)
    return found


class Rules:
    """The table in the kernel: made, kept in step with the services, removed.

    Args:
        table: its name.
        queue: the number of the packet queue.
        group: the number of the log group that hears of replies.
        bypass: let packets pass to the local stack where no program reads the queue.
    """

    def __init__(self, table: str, queue: int, group: int, *, bypass: bool) -> None:
        self._table = table
        self._queue_number = queue
        self._group = group
        self._bypass = bypass
        self._netlink = Netlink(netlink.NETFILTER)
        self._monitor = Netlink(netlink.NETFILTER, groups=[nftables.MONITOR])
        self._held: Contents = {}
        self._reassembling = False
        self._watching = False
        self.native = True

    # --- the table ---

    def install(self, keys: Iterable[ServiceKey]) -> None:
        """Make the table, in place of one that an earlier run left; all in one transaction.

        Raises:
            DatapathError: nftables or its queue is missing here, or the right to use it.
        """
        self._held = {}
        self._reassembling = False
        wanted = contents(keys)
        try:
            self._transact(self._whole(nftables.queue, wanted))
            self.native = True
        except Refused as refused:
            if refused.errno in (errno.EPERM, errno.EACCES):
                raise _not_allowed(refused) from refused
            try:
                self._transact(self._whole(nftables.queue_target, wanted))
                self.native = False
            except Refused as err:
                raise DatapathError(
                    f"the packet queue cannot be set up: nftables refused `queue` "
                    f"({refused.strerror}) and the NFQUEUE target ({err.strerror}); the kernel "
                    "needs CONFIG_NF_TABLES_INET with CONFIG_NFT_QUEUE, or with CONFIG_NFT_COMPAT "
                    "and CONFIG_NETFILTER_XT_TARGET_NFQUEUE (modprobe nft_queue)"
                ) from err
        self._held = wanted
        self._reassemble()
        if self._watching:
            self._watching = False
            self.watch_replies(wanted=True)

    def update(self, keys: Iterable[ServiceKey]) -> None:
        """Make the sets hold `keys`: only what differs is sent, in one transaction."""
        wanted = contents(keys)
        changes: list[Message] = []
        for name, held in self._held.items():
            gone, new = held - wanted[name], wanted[name] - held
            changes += nftables.elements(self._table, name, gone, delete=True)
            changes += nftables.elements(self._table, name, new)
        if changes:
            try:
                self._transact(changes)
            except Refused as refused:
                if refused.errno != errno.ENOENT:
                    raise _not_allowed(refused) from refused
                self.install(keys)  # somebody flushed the ruleset
                return
            self._held = wanted
            self._reassemble()

    def remove(self) -> None:
        """Take the table away, so that the local stack answers for every address again."""
        try:
            self._transact([nftables.new_table(self._table), nftables.delete_table(self._table)])
        except Refused as refused:
            raise _not_allowed(refused) from refused

    def _whole(self, to_queue: Callable[..., bytes], wanted: Contents) -> list[Message]:
        table = self._table
        messages = [
            nftables.new_table(table),
            nftables.delete_table(table),
            nftables.new_table(table),
            nftables.new_chain(table, _IN, nftables.INPUT, PRIORITY),
            nftables.new_chain(table, _OUT, nftables.OUTPUT, PRIORITY),
            nftables.new_chain(table, _REASSEMBLE),
        ]
        for name, (key_type, size) in _SETS.items():
            messages.append(nftables.new_set(table, name, _NUMBERS[name], key_type, size))
            messages += nftables.elements(table, name, wanted[name])
        to_director = to_queue(self._queue_number, bypass=self._bypass)
        for matches in self._services(_DESTINATION, 2):
            messages.append(nftables.new_rule(table, _IN, *matches, to_director))
        family, protocol = nftables.meta(nftables.NFPROTO), nftables.meta(nftables.L4PROTO, 1)
        mark = nftables.meta(nftables.MARK, 2)
        messages.append(
            nftables.new_rule(table, _IN, family, protocol, mark, _member("marks"), to_director)
        )
        # ICMP errors are seldom ours, and the host needs its own while no daemon reads the queue.
        error = to_queue(self._queue_number, bypass=True)
        kind = (
            nftables.meta(nftables.L4PROTO),
            nftables.payload(nftables.TRANSPORT, 0, 1, 1),
            _member("errors"),
        )
        for version in (4, 6):
            match = (*self._to(_DESTINATION, version), _member(f"addresses{version}"))
            messages.append(nftables.new_rule(table, _IN, *kind, *match, error))
        match = (family, protocol, _member("marked"))
        messages.append(nftables.new_rule(table, _IN, *kind, *match, error))
        return messages

    def _services(self, address: dict[int, int], port: int) -> list[tuple[bytes, ...]]:
        """Return the matches of packets that an address and port tell to be of a service."""
        found = []
        for version in (4, 6):
            words = _ADDRESS_SIZE[version] // 4
            to = (*self._to(address, version), nftables.meta(nftables.L4PROTO, words))
            own = nftables.payload(nftables.TRANSPORT, port, 2, words + 1)
            found.append((*to, own, _member(f"services{version}")))
            found.append((*to, _member(f"allports{version}")))
        return found

    def _to(self, address: dict[int, int], version: int) -> tuple[bytes, ...]:
        size = _ADDRESS_SIZE[version]
        return (
            nftables.meta(nftables.NFPROTO),
            nftables.equals(bytes((_FAMILY[version],))),
            nftables.payload(nftables.NETWORK, address[version], size),
        )

    # --- replies of local servers ---

    def watch_replies(self, *, wanted: bool) -> None:
        """Copy the headers of what local sockets send from a service to the log group, or stop."""
        if wanted == self._watching:
            return
        self._watching = wanted
        messages = [nftables.delete_rules(self._table, _OUT)]
        if wanted:
            end = (nftables.log(self._group, SNAPSHOT), nftables.accept())
            marked = (
                nftables.meta(nftables.NFPROTO),
                nftables.meta(nftables.L4PROTO, 1),
                _member("marked"),
            )
            for matches in (*self._services(_SOURCE, 0), marked):
                messages.append(nftables.new_rule(self._table, _OUT, *matches, *end))
        try:
            self._transact(messages)
        except Refused as refused:
            raise DatapathError(
                f"replies of local servers cannot be followed: {refused.strerror}; the kernel "
                "needs CONFIG_NFT_LOG and CONFIG_NETFILTER_NETLINK_LOG (modprobe nft_log)"
            ) from refused

    # --- the rest ---

    def _reassemble(self) -> None:
        """Have the kernel reassemble IPv6 before the input hook, once there is a service of it.

        IPv4 datagrams are whole there in any case; ip_vs asks for the same (ip_vs_ctl.c,
        nf_defrag_ipv6_enable). A `tproxy` expression, even in a chain that nothing leads to, is
        what switches it on without connection tracking; a kernel without it drops fragments.
        """
        if self._reassembling or not (self._held["addresses6"] or self._held["marks"]):
            return
        self._reassembling = True
        try:
            self._transact([nftables.new_rule(self._table, _REASSEMBLE, nftables.tproxy())])
        except Refused:
            self._reassembling = False

    def fileno(self) -> int:
        """Return the descriptor that is readable when somebody changed nftables."""
        return self._monitor.socket.fileno()

    def lost(self) -> bool:
        """Read what others changed; True where they took the table away (``flush ruleset``)."""
        suspicious = False
        try:
            while messages := self._monitor.drain():
                kinds = [message.kind for message in messages]
                suspicious = suspicious or nftables.DELETE_TABLE in kinds
        except OSError:  # so much has changed that word of it was lost
            suspicious = True
        if suspicious:
            try:
                self._netlink.request(nftables.get_table(self._table))
            except Refused as refused:
                return refused.errno == errno.ENOENT
        return False

    def _transact(self, messages: list[Message]) -> None:
        self._netlink.request(*nftables.batch(messages))

    def close(self) -> None:
        """Close the sockets; the table stays."""
        self._netlink.close()
        self._monitor.close()


def _member(name: str) -> bytes:
    return nftables.member(name, _NUMBERS[name])


def _not_allowed(refused: Refused) -> DatapathError:
    return DatapathError(
        f"nftables refused a change: {refused.strerror}; the live datapath needs CAP_NET_ADMIN "
        "and CAP_NET_RAW in its network namespace: run it as root, or in `unshare -Urn`"
    )


def remove_rules(table: str = "lvskit") -> None:
    """Remove the table that a stopped or killed daemon left behind to drop packets.

    Raises:
        DatapathError: not allowed here.
    """
    rules = Rules(table, 0, 0, bypass=False)
    try:
        rules.remove()
    finally:
        rules.close()
