"""What a generated scenario may contain, as named sets of features."""

from __future__ import annotations

from dataclasses import dataclass, replace

LEAST_LOADED = ("rr", "wrr", "lc", "wlc", "sed", "nq")
SCHEDULERS = (*LEAST_LOADED, "sh", "dh", "mh", "fo", "ovf", "lblc", "lblcr")


@dataclass(frozen=True)
class Profile:
    """A set of features.

    Attributes:
        schedulers: that services may have.
        flags: schedulers' flags (`-b`).
        ipv6: services, servers and clients of IPv6, and mixed ones.
        sctp: services of SCTP.
        settings: changes of net.ipv4.vs.* between the steps.
        methods: forwarding by -m and -g, and by GUE and GRE.
        odd_packets: TTL 1, options, sizes at the MTU, damaged headers.
        icmp: errors about connections and about the director's tunnels, and echoes.
        fragments: datagrams that arrive in pieces.
        listings: statistics and connections in ipvsadm's own words.
        steady: few features of services, and long conversations with those that there are.
    """

    schedulers: tuple[str, ...] = LEAST_LOADED
    flags: bool = False
    ipv6: bool = False
    sctp: bool = False
    settings: bool = False
    methods: bool = False
    odd_packets: bool = False
    icmp: bool = False
    fragments: bool = False
    listings: bool = False
    steady: bool = False


BASIC = Profile()
PROFILES = {
    "basic": BASIC,
    "listings": replace(BASIC, listings=True),
    "ipv6": replace(BASIC, ipv6=True),
    "icmp": replace(BASIC, icmp=True),
    "odd": replace(BASIC, odd_packets=True),
    "schedulers": replace(BASIC, schedulers=SCHEDULERS, flags=True),
    "sctp": replace(BASIC, sctp=True),
    "settings": replace(BASIC, settings=True),
    "methods": replace(BASIC, methods=True),
    "fragments": replace(BASIC, fragments=True),
    "steady": replace(
        BASIC, ipv6=True, odd_packets=True, icmp=True, fragments=True, settings=True, steady=True
    ),
    "packets": replace(BASIC, ipv6=True, odd_packets=True, icmp=True, fragments=True),
    "everything": Profile(
        schedulers=SCHEDULERS,
        flags=True,
        ipv6=True,
        sctp=True,
        settings=True,
        methods=True,
        odd_packets=True,
        icmp=True,
        fragments=True,
        listings=True,
    ),
}
"""By the names that commands take."""
