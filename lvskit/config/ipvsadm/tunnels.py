"""The kind of a tunnel: ipvsadm's words for it, and the options of the method `tunnel`.

The options are `type`, `port` and `checksum`, as the distribution lvskit-fwd-tunnel has them. What
is unless told (`ipip`, `nocsum`) is no option, so that a rule and what it made compare equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHECKSUMS = ("tun-nocsum", "tun-csum", "tun-remcsum")
_SIGNS = {"nocsum": "-c", "csum": "+c", "remcsum": "r+c"}


def options_of(kind: str, port: int, given: set[str]) -> dict[str, Any]:
    """Return the options of a tunnel that a line of ipvsadm describes.

    Args:
        kind: `ipip`, `gue` or `gre`.
        port: for GUE.
        given: the options of the line, of which one at most is about checksums.
    """
    options: dict[str, Any] = {}
    if kind != "ipip":
        options["type"] = kind
    if kind == "gue":
        options["port"] = port
    for checksum in CHECKSUMS[1:]:
        if checksum in given:
            options["checksum"] = checksum.removeprefix("tun-")
    return options


def words_for(options: Mapping[str, Any], *, full: bool) -> tuple[list[str], dict[str, Any]]:
    """Return ipvsadm's words for a tunnel, and those of its options that they do not say.

    Args:
        options: of a server with the method `tunnel`.
        full: say what is unless told, too, as ``ipvsadm -S`` does.
    """
    rest = dict(options)
    kind, port = rest.get("type", "ipip"), rest.get("port")
    if kind == "ipip":
        if full:
            rest.pop("type", None)
        return ["--tun-type", "ipip"] if full else [], rest
    has_port = type(port) is int and 1 <= port <= 65535
    if kind not in ("gue", "gre") or has_port != (kind == "gue"):
        return [], rest  # no line can say it; the plugin will refuse it
    words = ["--tun-type", rest.pop("type")]
    if kind == "gue":
        words += ["--tun-port", str(rest.pop("port"))]
    checksum = rest.get("checksum", "nocsum")
    sayable = [*(["nocsum"] if full else []), "csum", *(["remcsum"] if kind == "gue" else [])]
    if checksum in sayable:
        rest.pop("checksum", None)
        words.append(f"--tun-{checksum}")
    return words, rest


def summary(options: Mapping[str, Any]) -> str:
    """Return the column of ``--tun-info``.

    >>> summary({}), summary({"type": "gue", "port": 6080, "checksum": "remcsum"})
    ('ipip', 'gue:6080:r+c')
    """
    kind, sign = options.get("type", "ipip"), _SIGNS.get(str(options.get("checksum")), "-c")
    if kind == "gue":
        return f"gue:{options.get('port')}:{sign}"
    return f"{kind}:{sign}" if kind == "gre" else f"{kind}"
