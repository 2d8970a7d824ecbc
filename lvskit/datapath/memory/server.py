"""Simulated real servers and clients that speak enough TCP to be watched at work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lvskit.core.packet import Parsed
from lvskit.datapath.memory import stack
from lvskit.datapath.memory.network import Host, Network


class Services:
    """A host's TCP services: each greets with a banner, echoes, and closes when the client does.

    Args:
        banners: what each port says first.
    """

    def __init__(self, banners: dict[int, bytes]) -> None:
        self.banners = banners
        self.sessions = 0

    def answer(self, packet: bytes, parsed: Parsed) -> bytes | None:
        """Return the segment that answers `packet`, or None."""
        banner = self.banners.get(parsed.dport)
        if banner is None:
            return stack.reset(packet, parsed)
        at = parsed.offset
        seq = int.from_bytes(packet[at + 4 : at + 8], "big")
        ack = int.from_bytes(packet[at + 8 : at + 12], "big")
        data = packet[at + (packet[at + 12] >> 4) * 4 : parsed.length]
        if parsed.flags & stack.RST:
            return None
        if parsed.flags & stack.SYN:
            self.sessions += 1
            return stack.segment(parsed, stack.SYN | stack.ACK, 0, seq + 1)
        if parsed.flags & stack.FIN:
            return stack.segment(parsed, stack.FIN | stack.ACK, ack, seq + len(data) + 1)
        if data:
            return stack.segment(parsed, stack.PSH | stack.ACK, ack, seq + len(data), data)
        if ack == 1:  # the handshake is done
            return stack.segment(parsed, stack.PSH | stack.ACK, ack, seq, banner)
        return None


class RealServerHost(Host):
    """A real server: unpacks tunnelled packets, and answers the client directly.

    Args:
        vips: virtual addresses, on a device that does not answer for them on the segment.
        services: its TCP services.
    """

    def __init__(
        self,
        network: Network,
        addresses: Iterable[str],
        vips: Iterable[str],
        services: Services,
        *,
        gateway: dict[int, bytes] | None = None,
    ) -> None:
        super().__init__(network, addresses, gateway=gateway, quiet=vips)
        self.services = services
        self.unpacks = True

    def tcp(self, packet: bytes, parsed: Parsed) -> bytes | None:
        """Answer as the services say."""
        return self.services.answer(packet, parsed)


@dataclass
class Session:
    """A client's end of one TCP connection."""

    local: tuple[bytes, int]
    remote: tuple[bytes, int]
    seq: int = 1
    ack: int = 0
    received: bytearray = field(default_factory=bytearray)
    reset: bool = False


class ClientHost(Host):
    """A client that opens TCP sessions and reads what comes back."""

    def __init__(
        self,
        network: Network,
        addresses: Iterable[str],
        *,
        gateway: dict[int, bytes] | None = None,
    ) -> None:
        super().__init__(network, addresses, gateway=gateway)
        self._sessions: dict[int, Session] = {}
        self._next_port = 40000

    def connect(self, address: bytes, port: int) -> Session:
        """Open a session to a packed `address` and wait for the banner."""
        own = next(a for a in self.addresses if len(a) == len(address))
        session = Session((own, self._next_port), (address, port))
        self._sessions[self._next_port] = session
        self._next_port += 1
        self._say(session, stack.SYN, seq=0)
        return session

    def say(self, session: Session, data: bytes) -> None:
        """Send `data`."""
        self._say(session, stack.PSH | stack.ACK, data)
        session.seq += len(data)
        self.network.run()

    def close(self, session: Session) -> None:
        """End the session."""
        self._say(session, stack.FIN | stack.ACK)

    def _say(self, session: Session, flags: int, data: bytes = b"", seq: int | None = None) -> None:
        seq = session.seq if seq is None else seq
        self.send(stack.tcp(session.local, session.remote, flags, seq, session.ack, data))
        self.network.run()

    def tcp(self, packet: bytes, parsed: Parsed) -> bytes | None:
        """Take a server's segment."""
        session = self._sessions.get(parsed.dport)
        if session is None or (parsed.src, parsed.sport) != session.remote:
            return stack.reset(packet, parsed)
        at = parsed.offset
        seq = int.from_bytes(packet[at + 4 : at + 8], "big")
        data = packet[at + (packet[at + 12] >> 4) * 4 : parsed.length]
        if parsed.flags & stack.RST:
            session.reset = True
            return None
        counted = len(data) + bool(parsed.flags & (stack.SYN | stack.FIN))
        session.received += data
        session.ack = seq + counted
        if parsed.flags & stack.FIN:
            session.seq += 1
            del self._sessions[parsed.dport]
        if not counted:
            return None
        return stack.tcp(session.local, session.remote, stack.ACK, session.seq, session.ack)
