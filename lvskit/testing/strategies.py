"""Hypothesis strategies: configurations as they come back from wherever they are kept.

They are in canonical form: ports are numbers, every server names its port, a mask that masks
nothing is None, IPv4 masks are dotted and IPv6 ones prefix lengths, no timeout is 0 (that would
keep another). So what is written, applied or saved, and read again, can be compared with ``==``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from lvskit.config.model import Config, DirectorConfig, Server, Service, Timeouts
from lvskit.config.settings import SHORT
from lvskit.settings import (
    MAX_MARK,
    MAX_THRESHOLD,
    MAX_TIMEOUT_S,
    MAX_WEIGHT,
    MODES,
    NAMES,
    allowed,
)

SCHEDULERS = (
    "rr", "wrr", "wlc", "lc", "sed", "nq", "sh", "dh", "mh", "fo", "ovf", "lblc", "lblcr",
)  # fmt: skip
"""The bundled schedulers."""

TUNABLE = tuple(name for name in NAMES if name != "cache_bypass")
"""The settings that need no forwarding method besides the bundled ones."""
_PORTS = st.integers(0, 65535)
_SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()


def addresses(version: int) -> st.SearchStrategy[str]:
    """Return unicast addresses, as text."""
    if version == 4:
        return st.integers(1 << 24, (224 << 24) - 1).map(lambda n: str(ipaddress.IPv4Address(n)))
    low, high = 0x2000 << 112, 0x3FFF << 112
    return st.integers(low, high).map(lambda n: str(ipaddress.IPv6Address(n)))


def endpoints(version: int, ports: st.SearchStrategy[int] = _PORTS) -> st.SearchStrategy[str]:
    """Return addresses with ports, as text."""
    form = "{}:{}" if version == 4 else "[{}]:{}"
    return st.builds(form.format, addresses(version), ports)


def netmasks(version: int) -> st.SearchStrategy[str | int | None]:
    """Return masks that mask something, and None."""
    if version == 6:
        return st.none() | st.integers(1, 127)
    return st.none() | st.integers(0, 2**32 - 2).map(lambda n: str(ipaddress.IPv4Address(n)))


def options() -> st.SearchStrategy[dict[str, Any]]:
    """Return options such as plugins may have: what both notations can hold."""
    names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
    return st.dictionaries(names, _SCALARS | st.lists(_SCALARS, max_size=3), max_size=2)


def settings(names: Iterable[str]) -> st.SearchStrategy[dict[str, int]]:
    """Return values of some of the settings `names`."""

    def values(name: str) -> st.SearchStrategy[int]:
        if name in MODES:
            return st.sampled_from([0, 1, 3])  # 2 is another word for 1
        return st.integers(*allowed(name))

    return st.lists(st.sampled_from(list(names)), max_size=4, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: values(name) for name in chosen})
    )


@st.composite
def servers(
    draw: st.DrawFn, ports: st.SearchStrategy[int], extra: st.SearchStrategy[dict[str, Any]]
) -> Server:
    """Draw a real server.

    Args:
        draw: hypothesis's.
        ports: of the server.
        extra: options of its forwarding method.
    """
    upper = draw(st.just(0) | st.integers(0, MAX_THRESHOLD))
    return Server(
        address=draw(st.sampled_from([4, 6]).flatmap(lambda version: endpoints(version, ports))),
        weight=draw(st.integers(0, 100) | st.integers(0, MAX_WEIGHT)),
        upper_threshold=upper,
        lower_threshold=draw(st.integers(0, upper)),
        options=draw(tunnels()) | draw(extra),
    )


def tunnels() -> st.SearchStrategy[dict[str, Any]]:
    """Return options of the tunnel, without what is unless told."""
    gre = st.fixed_dictionaries({"type": st.just("gre")}, optional={"checksum": st.just("csum")})
    checksums = st.sampled_from(["csum", "remcsum"])
    gue = st.fixed_dictionaries(
        {"type": st.just("gue"), "port": st.integers(1, 65535)}, optional={"checksum": checksums}
    )
    return st.just({}) | gre | gue


@st.composite
def services(draw: st.DrawFn, extra: st.SearchStrategy[dict[str, Any]]) -> Service:
    """Draw a virtual service with its servers; `extra`: options of scheduler and method."""
    kind = draw(st.sampled_from(["tcp", "udp", "sctp", "fwmark"]))
    version = draw(st.sampled_from([4, 6]))
    persistent = draw(st.just(0) | st.integers(1, MAX_TIMEOUT_S))
    if kind == "fwmark":
        names: dict[str, Any] = {"fwmark": draw(st.integers(1, MAX_MARK)), "ipv6": version == 6}
        ports = _PORTS
    else:
        port = draw(st.integers(0 if persistent else 1, 65535))
        ports = st.just(port)
        names = {kind: draw(endpoints(version, ports))}
    scheduler = draw(st.sampled_from(SCHEDULERS))
    named = [f"{scheduler}-fallback", f"{scheduler}-port"] if scheduler in ("sh", "mh") else []
    flags = draw(st.sets(st.sampled_from(named or ["flag-1", "flag-2", "flag-3"])))
    return Service(
        **names,
        scheduler=scheduler,
        flags=sorted(flags),
        options=draw(extra),
        persistent=persistent,
        netmask=draw(netmasks(version)),
        one_packet=kind in ("udp", "fwmark") and draw(st.booleans()),
        settings=draw(settings(TUNABLE)),
        server=draw(st.lists(servers(ports, extra), max_size=4, unique_by=lambda s: s.address)),
    )


def directors() -> st.SearchStrategy[DirectorConfig]:
    """Return settings of the daemon itself."""
    texts = st.none() | st.text(max_size=20)
    return st.builds(
        DirectorConfig,
        size=st.integers(1, 1 << 30),
        datapath=st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True),
        datapath_options=options(),
        socket=texts,
        group=texts,
        state=texts,
    )


@st.composite
def configs(draw: st.DrawFn, *, with_director: bool = False, with_options: bool = False) -> Config:
    """Draw a configuration with the bundled schedulers and the tunnel.

    Args:
        draw: hypothesis's.
        with_director: with settings of the daemon itself.
        with_options: with options that no bundled plugin takes.
    """
    timeouts = st.none() | st.integers(1, MAX_TIMEOUT_S)
    short = frozenset(SHORT.values())
    extra = options() if with_options else st.just({})
    return Config(
        director=draw(directors()) if with_director else DirectorConfig(),
        timeouts=draw(st.builds(Timeouts, tcp=timeouts, tcp_fin=timeouts, udp=timeouts)),
        settings=draw(settings(name for name in TUNABLE if name not in short)),
        service=draw(st.lists(services(extra), max_size=4, unique_by=Service.key)),
    )
