"""The nftables table that hands the packets of virtual services to the director, and no others.

One base chain at the input hook, behind every filter (which is where ip_vs stands, at
NF_INET_LOCAL_IN priority 99), looks packets up in sets, so their number of services costs nothing;
adding and removing services changes elements alone. Chains that change would empty the queue: the
kernel drops queued packets whenever a hook goes away (nf_queue_nf_hook_drop).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from lvskit.datapath.live import matches, netlink, nftables
from lvskit.datapath.live.netlink import Message, Netlink, Refused
from lvskit.datapath.live.sets import SETS, Claims, Contents, contents
from lvskit.errors import DatapathError

PRIORITY: Final = 99  # ip_vs_ops: LOCAL_IN at NF_IP_PRI_NAT_SRC - 1
_BEFORE_REASSEMBLY: Final = -450  # NF_IP_PRI_CONNTRACK_DEFRAG is -400
SNAPSHOT: Final = 128  # of a reply or a fragment: its headers

_IN, _OUT, _FORWARD = "input", "output", "forward"
_REASSEMBLE, _FRAGMENTS = "reassemble", "fragments"


class Watch(NamedTuple):
    """Which answers of real servers the director hears of.

    Attributes:
        copies: it is told what local sockets send from the address of a service.
        answers: packets of answering servers that cross the host wait for its word.
        local_answers: those that such a server on this host itself sends do, too.
    """

    copies: bool = False
    answers: bool = False
    local_answers: bool = False


class Rules:
    """The table in the kernel: made, kept in step with the services, removed.

    Args:
        table: its name.
        queue: the number of the packet queue.
        group: the number of the log group that hears of replies and fragments.
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
        self._settled: set[str] = set()
        self._watch = Watch()
        self._to_queue: Callable[..., bytes] = nftables.queue

    # --- the table ---

    def install(self, claims: Claims) -> None:
        """Make the table, in place of one that an earlier run left; all in one transaction.

        Raises:
            DatapathError: nftables or its queue is missing here, or the right to use it.
        """
        self._held = {}
        self._settled.clear()
        wanted = contents(claims)
        self._to_queue = nftables.queue
        try:
            self._transact(self._whole(wanted))
        except Refused as refused:
            if refused.errno in (errno.EPERM, errno.EACCES):
                raise _not_allowed(refused) from refused
            self._to_queue = nftables.queue_target
            try:
                self._transact(self._whole(wanted))
            except Refused as err:
                raise DatapathError(
                    f"the packet queue cannot be set up: nftables refused `queue` "
                    f"({refused.strerror}) and the NFQUEUE target ({err.strerror}); the kernel "
                    "needs CONFIG_NF_TABLES_INET with CONFIG_NFT_QUEUE, or with CONFIG_NFT_COMPAT "
                    "and CONFIG_NETFILTER_XT_TARGET_NFQUEUE (modprobe nft_queue)"
                ) from err
        self._held = wanted
        self._see_to_fragments()
        watch, self._watch = self._watch, Watch()
        self.watch(watch)

    def update(self, claims: Claims) -> None:
        """Make the sets hold `claims`: only what differs is sent, in one transaction."""
        wanted = contents(claims)
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
                self.install(claims)  # somebody flushed the ruleset
                return
            self._held = wanted
            self._see_to_fragments()

    def remove(self) -> None:
        """Take the table away, so that the local stack answers for every address again."""
        try:
            self._transact([nftables.new_table(self._table), nftables.delete_table(self._table)])
        except Refused as refused:
            raise _not_allowed(refused) from refused

    def _whole(self, wanted: Contents) -> list[Message]:
        table = self._table
        messages = [
            nftables.new_table(table),
            nftables.delete_table(table),
            nftables.new_table(table),
            nftables.new_chain(table, _IN, nftables.INPUT, PRIORITY),
            nftables.new_chain(table, _OUT, nftables.OUTPUT, PRIORITY),
            nftables.new_chain(table, _REASSEMBLE),
        ]
        for name, (key_type, size) in SETS.items():
            messages.append(nftables.new_set(table, name, matches.NUMBERS[name], key_type, size))
            messages += nftables.elements(table, name, wanted[name])
        to_director = self._queue()
        for match in (*matches.to_places("services", "allports"), matches.marked()):
            messages.append(nftables.new_rule(table, _IN, *match, to_director))
        # ICMP errors are seldom ours, and the host needs its own while no daemon reads the queue.
        to_director = self._queue(bypass=True)
        for match in matches.errors():
            messages.append(nftables.new_rule(table, _IN, *match, to_director))
        return messages

    def _queue(self, *, bypass: bool = False) -> bytes:
        return self._to_queue(self._queue_number, bypass=bypass or self._bypass)

    # --- answers of real servers ---

    def watch(self, wanted: Watch) -> None:
        """Hear of the answers in `wanted`, and of no others.

        The chain that sees answers cross the host is made when one is wanted first, and stays.

        Raises:
            DatapathError: the kernel lacks what it takes.
        """
        if wanted == self._watch:
            return
        table = self._table
        messages = [nftables.delete_rules(table, _OUT)]
        if wanted.answers and not self._watch.answers:
            messages.append(nftables.new_chain(table, _FORWARD, nftables.FORWARD, PRIORITY))
            messages += self._answers(_FORWARD)
        if wanted.local_answers or wanted.copies:
            # Of ICMP errors the host's own are wanted: its socket is no program's, as ours is.
            own = matches.errors_of_programs()
            messages.append(nftables.new_rule(table, _OUT, *own, nftables.accept()))
        if wanted.local_answers:
            messages += self._answers(_OUT)
        if wanted.copies:
            copy = (nftables.log(self._group, SNAPSHOT), nftables.accept())
            for match in (*matches.from_places("services", "allports"), matches.markable()):
                messages.append(nftables.new_rule(table, _OUT, *match, *copy))
            for match in matches.errors_about("addresses"):
                messages.append(nftables.new_rule(table, _OUT, *match, *copy))
        try:
            self._transact(messages)
        except Refused as refused:
            raise DatapathError(
                f"answers of real servers cannot be followed: {refused.strerror}; the kernel "
                "needs CONFIG_NFT_LOG and CONFIG_NETFILTER_NETLINK_LOG (modprobe nft_log)"
            ) from refused
        self._watch = wanted._replace(answers=wanted.answers or self._watch.answers)

    def _answers(self, chain: str) -> Iterator[Message]:
        for match in matches.from_places("answers", "allanswers"):
            yield nftables.new_rule(self._table, chain, *match, self._queue())
        for match in matches.errors_about("servers"):
            yield nftables.new_rule(self._table, chain, *match, self._queue(bypass=True))

    # --- fragments ---

    def _see_to_fragments(self) -> None:
        """See to what happens to fragments before the input hook, once a service needs it.

        IPv6: the kernel reassembles it there only if asked to; ip_vs asks for the same
        (ip_vs_ctl.c, nf_defrag_ipv6_enable). A `tproxy` expression, even in a chain that nothing
        leads to, is what switches it on without connection tracking; a kernel without it drops
        fragments. Headers of fragments are copied, see `lvskit.datapath.live.fragments`; a kernel
        that cannot splits larger datagrams only where it must.
        """
        held, table = self._held, self._table
        if (held["addresses6"] or held["marks"]) and _REASSEMBLE not in self._settled:
            self._try(_REASSEMBLE, [nftables.new_rule(table, _REASSEMBLE, nftables.tproxy())])
        wanted = held["addresses4"] or held["addresses6"] or held["marks"]
        if wanted and _FRAGMENTS not in self._settled:
            # These two rules alone are what every packet of the host meets here.
            entry, hook = f"{_FRAGMENTS}_in", (nftables.PREROUTING, _BEFORE_REASSEMBLY)
            to_copies = nftables.jump(_FRAGMENTS)
            messages = [
                nftables.new_chain(table, _FRAGMENTS),
                nftables.new_chain(table, entry, *hook),
            ]
            for match in matches.fragments():
                messages.append(nftables.new_rule(table, entry, *match, to_copies))
            for match in matches.wanted_fragments():
                copy = nftables.log(self._group, SNAPSHOT)
                messages.append(nftables.new_rule(table, _FRAGMENTS, *match, copy))
            self._try(_FRAGMENTS, messages)

    def _try(self, what: str, messages: list[Message]) -> None:
        """Do what a kernel may lack, until it has been done."""
        with contextlib.suppress(Refused):
            self._transact(messages)
            self._settled.add(what)

    # --- the rest ---

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
