"""Invented packets: mostly conversations with the services, and much that happens to them."""

from __future__ import annotations

from dataclasses import dataclass

import damage
from administration import LOCAL, SERVERS, Administration, Do, Service
from dice import Dice
from profiles import Profile

from lvskit.testing import packets
from lvskit.types import ICMP, ICMPV6, SCTP, TCP, UDP

NUMBERS = {"tcp": TCP, "udp": UDP, "sctp": SCTP}
ROUTERS = {4: ("10.9.9.9", "192.168.1.1"), 6: ("2001:db8:9::9",)}
DIRECTOR = {4: "192.168.1.175", 6: "2001:db8::175"}
MARKED = ("172.16.0.1", "172.16.0.2", "172.16.1.1")
_ODD_FLAGS = ("S", "A", "PA", "FA", "F", "R", "RA", "SA", "SF", "SR", "", "P", "FPU", "SEC", "AC")
_CHUNKS = {  # RFC 9260, section 3.2
    "DATA": 0, "INIT": 1, "INIT-ACK": 2, "SACK": 3, "HEARTBEAT": 4, "ABORT": 6, "SHUTDOWN": 7,
    "SHUTDOWN-ACK": 8, "ERROR": 9, "COOKIE-ECHO": 10, "COOKIE-ACK": 11, "SHUTDOWN-COMPLETE": 14,
}  # fmt: skip
_ERRORS_V4 = ((3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (4, 0), (11, 0), (11, 1), (5, 1), (12, 0))
_ERRORS_V6 = ((1, 0), (1, 3), (1, 4), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1))


@dataclass
class Talk:
    """A client's conversation with a virtual service.

    Attributes:
        stage: how many packets of it were sent.
    """

    service: Service
    protocol: str
    client: str
    cport: int
    virtual: str
    vport: int
    stage: int = 0

    @property
    def version(self) -> int:
        """Of IP."""
        return 6 if ":" in self.client else 4


class Traffic:
    """Invents what arrives at the director.

    Args:
        mtu: of the wire.
    """

    def __init__(self, dice: Dice, profile: Profile, admin: Administration, mtu: int) -> None:
        self._dice = dice
        self._profile = profile
        self._admin = admin
        self._mtu = mtu
        self._talks: list[Talk] = []
        self._count = 0

    def next(self) -> list[Do]:
        """Return the next packet; or several, the fragments of one."""
        profile = self._profile
        kinds = {
            "talk": 60.0,
            "odd": 8.0 if profile.odd_packets else 0,
            "icmp": 8.0 if profile.icmp else 0,
            "fragments": 4.0 if profile.fragments else 0,
            "reply": 8.0 if profile.methods else 0,
        }
        while True:
            found: list[Do] = getattr(self, f"_{self._dice.weighted(kinds)}")()
            if all(len(do["pkt"]["raw"]) <= 2 * self._mtu for do in found):  # type: ignore[index]
                return found  # the wire does not carry more

    def _talk_for(self) -> Talk:
        """Return a conversation that goes on, or a new one."""
        dice = self._dice
        if self._talks and dice.chance(0.9 if self._profile.steady else 0.65):
            return dice.pick(self._talks[-4 if self._profile.steady else -12 :])
        service = dice.pick(self._admin.services)
        if service.version == 6:
            client = f"2001:db8:{dice.between(1, 2)}::{dice.between(1, 4)}"
        else:
            client = f"10.{dice.between(1, 2)}.{dice.between(1, 2)}.{dice.between(1, 4)}"
        protocol, virtual, vport = service.protocol, service.virtual, service.port
        if not protocol:
            protocol = dice.pick(("tcp", "tcp", "udp"))
            marked = any(mark["mark"] == 7 for mark in self._admin.marks) and service.mark == 7
            virtual = dice.pick(MARKED) if marked else "192.168.1.176"
            if service.version == 6:
                virtual = "2001:db8::176"
        vport = vport or dice.pick((80, 443, 8080, 22, 53, 20))
        talk = Talk(service, protocol, client, dice.between(1000, 1003), virtual, vport)
        self._talks.append(talk)
        return talk

    # --- what a client sends ---

    def _talk(self) -> list[Do]:
        talk = self._talk_for()
        return [self._packet(talk)]

    def _packet(self, talk: Talk, **how: object) -> Do:
        dice = self._dice
        payload = how.pop("payload", None)
        if payload is None:
            payload = bytes(range(dice.between(1, 200))) if dice.chance(0.25) else b""
        body, words = self._transport(talk, payload)
        talk.stage += 1
        return self._emit(talk, body, words, **how)

    def _transport(self, talk: Talk, payload: bytes) -> tuple[bytes, dict[str, object]]:
        """Return the transport part of a client's next packet, and what it is."""
        dice = self._dice
        ends = (talk.client, talk.cport, talk.virtual, talk.vport)
        if talk.protocol == "udp":
            return _body(packets.udp(*ends, payload=payload)), {}
        if talk.protocol == "sctp":
            usual = ("INIT", "COOKIE-ECHO", "DATA", "SACK", "SHUTDOWN", "SHUTDOWN-COMPLETE")
            chunk = usual[min(talk.stage, 5)] if dice.chance(0.6) else dice.pick(sorted(_CHUNKS))
            return sctp(talk.cport, talk.vport, _CHUNKS[chunk], payload), {"chunk": chunk}
        flags = "S" if talk.stage == 0 else dice.pick(("A", "A", "PA", "A", "FA", "R"))
        if talk.stage > 4 and dice.chance(0.3):
            flags = "S"
        if dice.chance(0.15):
            flags = dice.pick(_ODD_FLAGS)
        return _body(packets.tcp(*ends, flags, payload=payload)), {"flags": flags}

    def _emit(self, talk: Talk, body: bytes, words: dict[str, object], **how: object) -> Do:
        how.setdefault("df", self._dice.chance(0.8))
        if talk.version == 4:
            self._count += 1
            how.setdefault("identification", self._count)
        else:
            how = {key: value for key, value in how.items() if key in ("ttl", "tos")}
        raw = packets.ip(talk.client, talk.virtual, NUMBERS[talk.protocol], body, **how)  # type: ignore[arg-type]
        return self._sending(talk, raw, **words)

    def _sending(self, talk: Talk, raw: bytes, **words: object) -> Do:
        pkt = {"src": talk.client, "sport": talk.cport, "dst": talk.virtual, "dport": talk.vport}
        return {"op": "send", "pkt": pkt | {"proto": talk.protocol} | words | {"raw": raw.hex()}}

    def _odd(self) -> list[Do]:
        """A client's packet that is unusual, or broken."""
        dice, talk = self._dice, self._talk_for()
        kind = dice.weighted({"ttl": 3, "tos": 3, "big": 4, "options": 2, "damaged": 4})
        if kind == "ttl":
            return [self._packet(talk, ttl=dice.pick((0, 1, 1, 2, 255)))]
        if kind == "tos":
            return [self._packet(talk, tos=dice.pick((1, 2, 3, 0x10, 0xB8, 0xBB, 0xFF)))]
        if kind == "big":
            head = {"tcp": 20, "udp": 8, "sctp": 32}[talk.protocol] + (
                20 if talk.version == 4 else 40
            )
            size = self._mtu - dice.pick((0, 1, 4, 8, 19, 20, 21, 24, 28, 36, 40, 60, 100)) - head
            return [self._packet(talk, payload=bytes(size), df=dice.chance(0.6))]
        plain = self._packet(talk)
        raw = bytes.fromhex(plain["pkt"]["raw"])  # type: ignore[index]
        change = damage.options if kind == "options" else damage.damaged
        raw, note = change(dice, raw)
        plain["pkt"] |= {"raw": raw.hex(), "note": note}  # type: ignore[operator]
        return [plain]

    # --- what others send ---

    def _reply(self) -> list[Do]:
        """What a real server answers to a client, through the director."""
        dice, talk = self._dice, self._talk_for()
        server, port = self._server_of(talk)
        ends = (server, port or talk.vport, talk.client, talk.cport)
        if (":" in server) != (":" in talk.client) or server in LOCAL[talk.version]:
            return self._talk()
        payload = bytes(dice.pick((0, 0, 10, 100)))
        if talk.protocol == "tcp":
            flags = dice.pick(("SA", "A", "PA", "FA", "R", "RA"))
            raw, words = packets.tcp(*ends, flags, payload=payload), {"flags": flags}
        elif talk.protocol == "udp":
            raw, words = packets.udp(*ends, payload=payload), {}
        else:
            chunk = dice.pick(("INIT-ACK", "COOKIE-ACK", "DATA", "SACK", "SHUTDOWN-ACK", "ABORT"))
            body = sctp(ends[1], ends[3], _CHUNKS[chunk], payload)
            raw, words = packets.ip(server, talk.client, SCTP, body), {"chunk": chunk}
        pkt = {"src": server, "sport": ends[1], "dst": talk.client, "dport": talk.cport}
        return [{"op": "send", "pkt": pkt | {"proto": talk.protocol} | words | {"raw": raw.hex()}}]

    def _server_of(self, talk: Talk) -> tuple[str, int]:
        """Return a server of the conversation's service, and its port, 0 = the service's."""
        known = sorted(talk.service.servers)
        if not known:
            return SERVERS[talk.version][0], 0
        text = self._dice.pick(known)
        if text.startswith("["):
            host, _, port = text[1:].partition("]")
            return host, int(port[1:] or 0)
        host, _, port = text.partition(":")
        return host, int(port or 0)

    def _icmp(self) -> list[Do]:
        dice, talk = self._dice, self._talk_for()
        kind = dice.weighted({"client": 5, "tunnel": 5, "server": 3, "echo": 1})
        return [getattr(self, f"_icmp_{kind}")(talk)]

    def _icmp_client(self, talk: Talk) -> Do:
        """An error about what the service sent to the client."""
        dice = self._dice
        quoted = self._segment(talk, (talk.virtual, talk.vport, talk.client, talk.cport))
        if dice.chance(0.1):
            quoted = self._segment(talk, (talk.client, talk.cport, talk.virtual, talk.vport))
        source = dice.pick((talk.client, *ROUTERS[talk.version]))
        return self._error(source, talk.virtual, quoted)

    def _icmp_tunnel(self, talk: Talk) -> Do:
        """An error about the director's own packet to a real server."""
        dice = self._dice
        server, _ = self._server_of(talk)
        inner = self._segment(talk, (talk.client, talk.cport, talk.virtual, talk.vport), ttl=63)
        version = 6 if ":" in server else 4
        method = talk.service.servers.get(server, ["-i"])
        protocol = 4 if talk.version == 4 else 41
        if "gre" in method:
            key = 0x0800 if talk.version == 4 else 0x86DD
            protocol, inner = 47, bytes(2) + key.to_bytes(2, "big") + inner
        outer = packets.ip(DIRECTOR[version], server, protocol, inner, ttl=63)
        source = dice.pick((server, *ROUTERS[version]))
        return self._error(source, DIRECTOR[version], outer)

    def _icmp_server(self, talk: Talk) -> Do:
        """An error of a real server's, or a router's behind it, about a client's packet."""
        server, port = self._server_of(talk)
        if (":" in server) != (":" in talk.client) or server in LOCAL[talk.version]:
            return self._icmp_client(talk)
        quoted = self._segment(talk, (talk.client, talk.cport, server, port or talk.vport), ttl=63)
        return self._error(server, talk.client, quoted)

    def _icmp_echo(self, talk: Talk) -> Do:
        kind, number = (8, ICMP) if talk.version == 4 else (128, ICMPV6)
        body = _body(packets.icmp_error(talk.client, talk.virtual, kind, 0, b"ping", rest=1))
        raw = packets.ip(talk.client, talk.virtual, number, body)
        pkt = {"src": talk.client, "dst": talk.virtual, "proto": "icmp", "type": kind}
        return {"op": "send", "pkt": pkt | {"raw": raw.hex()}}

    def _segment(self, talk: Talk, ends: tuple[str, int, str, int], ttl: int = 64) -> bytes:
        """Return a packet of the conversation's that somebody complains about."""
        payload = bytes(self._dice.pick((0, 8, 100, 600)))
        if talk.protocol == "tcp":
            return packets.tcp(*ends, "A", payload=payload, ttl=ttl)
        if talk.protocol == "udp":
            return packets.udp(*ends, payload=payload, ttl=ttl)
        return packets.ip(ends[0], ends[2], SCTP, sctp(ends[1], ends[3], 0, payload), ttl=ttl)

    def _error(self, source: str, target: str, quoted: bytes) -> Do:
        dice = self._dice
        version = 6 if ":" in target else 4
        kind, code = dice.pick(_ERRORS_V4 if version == 4 else _ERRORS_V6)
        if dice.chance(0.4):
            kind, code = (3, 4) if version == 4 else (2, 0)
        rest = dice.pick((1280, 1300, 1400, 576, 0)) if (kind, code) in ((3, 4), (2, 0)) else 0
        quoted = quoted[: dice.pick((28, 48, 48, 56, 80, 100, 576, 1232))]
        raw = packets.icmp_error(source, target, kind, code, quoted, rest=rest)
        pkt = {"src": source, "dst": target, "proto": "icmp", "type": kind, "code": code}
        return {"op": "send", "pkt": pkt | {"rest": rest, "raw": raw.hex()}}

    def _fragments(self) -> list[Do]:
        """A datagram in pieces: in order or not, twice, or not all of it."""
        dice, talk = self._dice, self._talk_for()
        payload = bytes(n & 255 for n in range(dice.pick((60, 200, 1000, 2000, 4000))))
        body, words = self._transport(talk, payload)
        talk.stage += 1
        size = dice.pick((24, 104, 504, 1200)) if len(payload) < 500 else dice.pick((504, 1200))
        self._count += 1
        parts = damage.fragments(
            talk.client, talk.virtual, NUMBERS[talk.protocol], body, size, self._count
        )
        order = (
            list(range(len(parts)))[:8]
            if dice.chance(0.6)
            else dice.shuffled(range(len(parts)))[:8]
        )
        if len(order) < len(parts) or dice.chance(0.15):  # the rest never comes
            if talk.version == 6:
                return self._talk()  # who gives it up then, and whether it says so, is chance
            order.pop()
        if talk.version == 4 and order and dice.chance(0.1):
            order.append(dice.pick(order))
        return [self._sending(talk, parts[n], **words, note=f"fragment {n}") for n in order]


def sctp(sport: int, dport: int, chunk: int, payload: bytes = b"") -> bytes:
    """Return an SCTP packet with one chunk, and a right checksum."""
    data = bytes(16) + payload
    body = bytes((chunk, 3)) + (4 + len(data)).to_bytes(2, "big") + data + bytes(-len(data) % 4)
    head = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + (1).to_bytes(4, "big")
    total = damage.crc32c(head + bytes(4) + body)
    return head + total.to_bytes(4, "little") + body


def _body(packet: bytes) -> bytes:
    """Return what follows a packet's IP header, which has no options."""
    return packet[20 if packet[0] >> 4 == 4 else 40 :]
