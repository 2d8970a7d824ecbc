"""Settings as people write them: what each means, `NAME=VALUE`, and the short form of three.

The truth is one value, or none, for each name that the director and each service has. ``--set``
of ipvsadm and the table ``[timeouts]`` are other names for three of the director's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from lvskit.core import states
from lvskit.errors import ConfigError
from lvskit.settings import NAMES, allowed, check_settings

if TYPE_CHECKING:
    from lvskit.config.model import Config

SHORT: Final = {
    "tcp": "timeout_established",
    "tcp_fin": "timeout_finwait",
    "udp": "timeout_udp",
}
"""The settings that have a place in `Timeouts`, by the field's name."""

BACK: Final = "-"
"""What stands for no value: a service then has the director's, the director the kernel's."""

_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,18}")


def _kept(protocol: str, tables: states.Tables, names: Iterable[str]) -> dict[str, str]:
    """Return what timeouts mean, given in the order of the protocol's states."""
    text = "seconds that an idle {} connection is kept in the state {}"
    return {
        name: text.format(protocol, state) for name, state in zip(names, tables.names, strict=True)
    }


_SCTP: Final = [name for name in NAMES if name.startswith("timeout_sctp_")]
_TCP: Final = [
    name for name in NAMES if name.startswith("timeout_") and name not in (*_SCTP, "timeout_udp")
]
_MEANINGS: Final = {
    "am_droprate": "drop_packet 3 drops one packet in this many that would open a connection",
    "amemthresh": "free entries of the connection table below which defences set to 1 are at work",
    "cache_bypass": "without a server, packets of fwmark services go on to where they were sent",
    "conn_reuse_mode": "a client's ports again after a connection: 0 = its server, 1 = a new "
    "choice, 3 = that after a FIN too",
    "drop_entry": "give up half-open connections: 0 = never, 1 = while the table is nearly full, "
    "3 = always",
    "drop_packet": "drop packets that would open a connection: 0 = never, 1 = while the table is "
    "nearly full, 3 = always",
    "expire_nodest_conn": "the connections of a removed server end at once",
    "expire_quiescent_template": "persistence brings nobody to a quiesced server",
    "pmtu_disc": "tell clients the MTU of tunnels; 0 = fragment the tunnel's packets",
    "schedule_icmp": "an ICMP error about no known connection opens one",
    "secure_tcp": "TCP handshakes are half-open until the server confirms them: 0 = never, 1 = "
    "while the table is nearly full, 3 = always",
    "sloppy_sctp": "any SCTP packet but ABORT opens a connection, not only INIT",
    "sloppy_tcp": "any TCP packet but RST opens a connection, not only SYN",
    **_kept("TCP", states.TCP, _TCP),
    "timeout_udp": "seconds that an idle UDP connection is kept",
    **_kept("SCTP", states.SCTP, _SCTP),
}
MEANINGS: Final = {name: _MEANINGS[name] for name in NAMES}
"""What each setting means, in a line."""


def assignments(words: Iterable[str]) -> dict[str, int | None]:
    """Return the changes that words like `sloppy_tcp=1` ask for; None for `name=-`.

    Raises:
        ConfigError: a word of another form, a name that is no setting or is there twice, a value
            that it cannot have.

    >>> assignments(["sloppy_tcp=1", "timeout_udp=-"])
    {'sloppy_tcp': 1, 'timeout_udp': None}
    """
    changes: dict[str, int | None] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} changes no setting; allowed: NAME=VALUE, NAME={BACK}")
        if name in changes:
            raise ConfigError(f"setting {name} is given twice")
        number = int(text) if _NUMBER.fullmatch(text) else None
        check_settings({name: number})
        if number is None and text != BACK:
            low, high = allowed(name)
            raise ConfigError(
                f"setting {name} = {text!r}; allowed: {low} to {high}, or {BACK} to take it back"
            )
        changes[name] = number
    return changes


def format_assignments(values: Mapping[str, int]) -> list[str]:
    """Return the words that give `values`, in the order of the settings."""
    return [f"{name}={value}" for name, value in in_order(values).items()]


def in_order(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` in the order of the settings; names that are none come last."""
    known = {name: values[name] for name in NAMES if name in values}
    return {**known, **values}


def in_short(values: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the director's values as the fields of `Timeouts`, and all the others."""
    short = {field: values[name] for field, name in SHORT.items() if name in values}
    others = {name: value for name, value in values.items() if name not in SHORT.values()}
    return short, in_order(others)


def director_values(config: Config, present: Mapping[str, int]) -> dict[str, int]:
    """Return the values that `config` gives the director, whichever way it says them.

    Args:
        config: what there shall be.
        present: what there is, for a timeout of 0, which keeps it.

    Raises:
        ConfigError: a value that is said both ways.
    """
    values = dict(config.settings)
    for field, name in SHORT.items():
        given = getattr(config.timeouts, field)
        if given is None:
            continue
        if name in values:
            raise ConfigError(f"setting {name} is given twice, as `timeouts.{field}` too")
        if given == 0:
            given = present.get(name)
        if given is not None:
            values[name] = given
    return values
