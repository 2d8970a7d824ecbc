"""Packets from the kernel's queue to the director, and its verdicts back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lvskit.core.director import Director
from lvskit.datapath.live.fragments import FragmentSizes
from lvskit.datapath.live.nfqueue import ACCEPT, DROP, PacketLog, PacketQueue, whole
from lvskit.datapath.live.nftables import INPUT, PREROUTING
from lvskit.datapath.live.sender import Sender
from lvskit.types import Deliver, NotOurs, Reason, Reassembled, Reply, Transmit, Verdict

_BATCH: Final = 128  # packets to one turn of the event loop
_LOG_BUFFER: Final = 1 << 22


class Carrier:
    """The packet queue, the log and the raw sockets, with the director between them.

    Args:
        number: of the queue, and of the log group.
        length: packets that may wait.
        buffer: bytes of packets that may wait to be read.
        clock: the director's time.
        expect: called with a protocol when an ICMP error tells of a tunnel's packet of it, before
            the host gets that error.

    Attributes:
        director: decides; set it before packets are read.
        received, sent: packets so far.

    Raises:
        DatapathError: what is missing here, or not allowed.
    """

    director: Director

    def __init__(
        self,
        number: int,
        length: int,
        buffer: int,
        clock: Callable[[], float],
        expect: Callable[[int], None],
    ) -> None:
        self.received = self.sent = 0
        self._clock = clock
        self._expect = expect
        self._sizes = FragmentSizes()
        self._opened: list[Sender | PacketQueue | PacketLog] = []
        try:
            self._sender = Sender()
            self._opened.append(self._sender)
            self._queue = PacketQueue(number, length, buffer)
            self._opened.append(self._queue)
            self._log = PacketLog(number, _LOG_BUFFER)
            self._opened.append(self._log)
        except BaseException:
            self.close()
            raise

    @property
    def readers(self) -> dict[int, Callable[[], None]]:
        """What to call when a descriptor is readable."""
        return {self._queue.fileno(): self.carry, self._log.fileno(): self.listen}

    def carry(self) -> None:
        """Carry what waits in the queue, up to a batch."""
        waiting = self._queue.read(_BATCH)
        if not waiting:
            return
        self.received += len(waiting)
        receive, asked = self.director.receive, INPUT
        outgoing: list[bytes] = []
        send = outgoing.append
        runs: list[tuple[bytes, bytes, bytes]] = []
        answer, last = DROP, b""
        try:
            self.listen()  # what came before: fragments, and replies, state by state, in order
            if self._sizes:
                recall = self._sizes.recall
                waiting = [(n, recall(packet), mark, hook) for n, packet, mark, hook in waiting]
            now = self._clock()
            for number, packet, mark, hook in waiting:
                if hook == asked:
                    verdict = receive(packet, now, mark)
                    if isinstance(verdict, Transmit):
                        made, route, via = verdict
                        if via or len(made) > route.mtu or type(packet) is Reassembled:
                            self._send(outgoing)
                            self._send_specially(verdict, packet)
                        else:
                            send(made)
                        own = DROP
                    else:
                        own = self._decided(verdict, packet, outgoing)
                else:
                    own = self._answered(packet, now)
                if own is not answer:
                    if last:
                        runs.append((answer, last, b""))
                        last = b""
                    if own is not ACCEPT and own is not DROP:
                        runs.append((ACCEPT, number, own))
                        continue
                    answer = own
                last = number
        finally:  # whatever happens, nothing may wait for ever
            if last or not runs or runs[-1][1] != waiting[-1][0]:
                runs.append((answer, waiting[-1][0], b""))
            self._send(outgoing)
            self._queue.answer(runs)

    def send(self, verdict: Verdict, packet: bytes) -> bool:
        """Send what `verdict` says; False where `packet` would have to reach the host instead."""
        if isinstance(verdict, Transmit):
            self._send_specially(verdict, packet)
            return True
        outgoing: list[bytes] = []
        lost = self._decided(verdict, packet, outgoing) is not DROP
        self._send(outgoing)
        return not lost

    def _decided(self, verdict: Verdict, packet: bytes, outgoing: list[bytes]) -> bytes:
        """Return what becomes of a packet that is not sent on: a verdict, or what it becomes."""
        if isinstance(verdict, Deliver):
            return verdict.packet or ACCEPT
        if isinstance(verdict, Reply):
            outgoing.append(verdict.packet)
            if verdict.reason is Reason.TUNNEL_ERROR:
                self._expect(_quoted_protocol(packet))
                return ACCEPT  # it is for the host as well, which learns the path's MTU
        return ACCEPT if isinstance(verdict, NotOurs) else DROP

    def _answered(self, packet: bytes, now: float) -> bytes:
        """Return what becomes of a packet from a real server: a verdict, or what it becomes.

        It goes on its way through the host as ip_vs lets it: rewritten in its place.
        """
        verdict = self.director.replied(packet, now)
        if isinstance(verdict, (Transmit, Deliver)):
            return verdict.packet or ACCEPT
        if isinstance(verdict, Reply):
            self._send([verdict.packet])
        return ACCEPT if isinstance(verdict, NotOurs) else DROP

    def _send(self, packets: list[bytes]) -> None:
        """Send what goes to its own destination and fits; empty the list."""
        self.sent += len(packets)
        self._sender.send(packets)
        packets.clear()

    def _send_specially(self, verdict: Transmit, packet: bytes) -> None:
        """Send what is large, goes by another way, or came in fragments, for `packet`."""
        self._sender.send_to(verdict.packet, verdict.via, verdict.route.mtu, packet)
        self.sent += 1

    def listen(self) -> None:
        """Take what local servers have sent to the director, and note how fragments come."""
        while copies := self._log.read():
            now = self._clock()
            for hook, packet in copies:
                if hook == PREROUTING:
                    self._sizes.note(packet, now)
                else:
                    self.director.replied(whole(packet), now)

    def losses(self) -> dict[str, int]:
        """Return packets lost on the way, by the place where they were."""
        full, unread = self._queue.losses()
        failed = sum(self._sender.failed.values())
        return {"queue_full": full, "buffer_full": unread, "not_sent": failed}

    def close(self) -> None:
        """Close the sockets: the kernel drops what waits."""
        for each in self._opened:
            each.close()


def _quoted_protocol(packet: bytes) -> int:
    """Return the protocol of the IPv4 packet that an ICMP error is about."""
    return packet[(packet[0] & 15) * 4 + 8 + 9]
