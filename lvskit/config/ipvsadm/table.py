"""Which options there are, and which command takes which: ipvsadm's tables, and lvskit's own."""

from __future__ import annotations

from lvskit.config.ipvsadm.words import Option, Takes

_VALUE = Takes.VALUE

COMMANDS = {
    "A": "add-service",
    "E": "edit-service",
    "D": "delete-service",
    "C": "flush",
    "L": "list",
    "l": "list",
    "Z": "zero",
    "a": "add-server",
    "e": "edit-server",
    "d": "delete-server",
    "R": "restore",
    "S": "save",
    "set": "set",
    "start-daemon": "start-daemon",
    "stop-daemon": "stop-daemon",
    "h": "help",
    "v": "version",
}
"""Commands by letter, or by name where there is no letter: the first option of a line."""

OPTIONS = (
    Option("add-service", "A"),
    Option("edit-service", "E"),
    Option("delete-service", "D"),
    Option("clear", "C"),
    Option("list", "L"),
    Option("list", "l"),
    Option("zero", "Z"),
    Option("add-server", "a"),
    Option("edit-server", "e"),
    Option("delete-server", "d"),
    Option("restore", "R"),
    Option("save", "S"),
    Option("set"),
    Option("start-daemon", "", _VALUE),
    Option("stop-daemon", "", _VALUE),
    Option("help", "h"),
    Option("version", "v"),
    Option("tcp-service", "t", _VALUE),
    Option("udp-service", "u", _VALUE),
    Option("sctp-service", "", _VALUE),
    Option("fwmark-service", "f", _VALUE),
    Option("ipv6", "6"),
    Option("scheduler", "s", _VALUE),
    Option("persistent", "p", Takes.PERHAPS),
    Option("netmask", "M", _VALUE),
    Option("ops", "o"),
    Option("pe", "", _VALUE),
    Option("sched-flags", "b", _VALUE),
    Option("real-server", "r", _VALUE),
    Option("gatewaying", "g"),
    Option("ipip", "i"),
    Option("masquerading", "m"),
    Option("weight", "w", _VALUE),
    Option("u-threshold", "x", _VALUE),
    Option("l-threshold", "y", _VALUE),
    Option("tun-type", "", _VALUE),
    Option("tun-port", "", _VALUE),
    Option("tun-nocsum"),
    Option("tun-csum"),
    Option("tun-remcsum"),
    Option("numeric", "n"),
    Option("connection", "c"),
    Option("timeout"),
    Option("daemon"),
    Option("stats"),
    Option("rate"),
    Option("thresholds"),
    Option("persistent-conn"),
    Option("tun-info"),
    Option("nosort"),
    Option("sort"),
    Option("exact", "X"),
    Option("syncid", "", _VALUE),
    Option("sync-maxlen", "", _VALUE),
    Option("mcast-interface", "", _VALUE),
    Option("mcast-group", "", _VALUE),
    Option("mcast-port", "", _VALUE),
    Option("mcast-ttl", "", _VALUE),
    # lvskit's own
    Option("forward", "", _VALUE),
    Option("option", "", _VALUE),
    Option("json"),
    Option("lossless"),
)

ORDER = (
    "numeric",
    "connection",
    "service-address",
    "scheduler",
    "persistent",
    "netmask",
    "real-server",
    "forwarding-method",
    "weight",
    "u-threshold",
    "l-threshold",
    "mcast-interface",
    "timeout",
    "daemon",
    "stats",
    "rate",
    "thresholds",
    "persistent-conn",
    "nosort",
    "syncid",
    "exact",
    "ops",
    "pe",
    "sched-flags",
    "mcast-group",
    "mcast-port",
    "mcast-ttl",
    "sync-maxlen",
    "tun-info",
    "tun-type",
    "tun-port",
    "tun-nocsum",
    "tun-csum",
    "tun-remcsum",
    "option",
    "json",
    "lossless",
)
"""Options as messages name them, in the order in which they are checked."""

TUNNEL_OPTIONS = frozenset({"tun-type", "tun-port", "tun-nocsum", "tun-csum", "tun-remcsum"})

_SERVICE = frozenset({"scheduler", "persistent", "netmask", "ops", "pe", "sched-flags", "option"})
_SERVER = (
    frozenset({"forwarding-method", "weight", "u-threshold", "l-threshold", "option"})
    | TUNNEL_OPTIONS
)
_LIST = frozenset(
    {
        "numeric",
        "stats",
        "rate",
        "thresholds",
        "persistent-conn",
        "nosort",
        "exact",
        "tun-info",
        "syncid",
        "json",
    }
)
_MULTICAST = frozenset(
    {"mcast-interface", "mcast-group", "mcast-port", "mcast-ttl", "syncid", "sync-maxlen"}
)
_NOTHING: frozenset[str] = frozenset()
ADDRESS = frozenset({"service-address"})
"""What names a service."""
_BOTH = frozenset({"service-address", "real-server"})

REQUIRED = {
    "add-service": ADDRESS,
    "edit-service": ADDRESS,
    "delete-service": ADDRESS,
    "add-server": _BOTH,
    "edit-server": _BOTH,
    "delete-server": _BOTH,
}
"""By command, the options without which it is refused."""

ALLOWED = {
    "add-service": _SERVICE,
    "edit-service": _SERVICE,
    "delete-service": _NOTHING,
    "add-server": _SERVER,
    "edit-server": _SERVER,
    "delete-server": _NOTHING,
    "flush": _NOTHING,
    "restore": _NOTHING,
    "set": _NOTHING,
    "list": _LIST,
    "save": frozenset({"numeric", "json", "lossless"}),
    "zero": ADDRESS,
    "start-daemon": _MULTICAST,
    "stop-daemon": frozenset({"syncid"}),
}
"""By command, the options that it takes besides."""

EXCLUSIVE = {"list": frozenset({"connection", "service-address", "timeout", "daemon"})}
"""By command, the options of which it takes one at most."""

TUNNEL_REFUSED = {
    "ipip": frozenset({"tun-port", "tun-nocsum", "tun-csum", "tun-remcsum"}),
    "gue": _NOTHING,
    "gre": frozenset({"tun-port", "tun-remcsum"}),
}
"""By tunnel type, the options that it refuses; of the three on checksums it takes one at most."""
