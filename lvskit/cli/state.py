"""`lvskit status`, `save` and `apply`: the state of a running daemon."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lvskit.control.client import connect


def add_parser(subparsers: Any) -> None:
    """Add the commands to the parsers of `lvskit`."""
    status = subparsers.add_parser(
        "status",
        help="what a running daemon has, and what passes",
        description="Show the services of the running daemon, their servers, and what passes.",
    )
    status.add_argument("--json", action="store_true", help="everything, for programs")
    status.set_defaults(func=_status)
    save = subparsers.add_parser(
        "save",
        help="print the services of a running daemon, to keep them",
        description="Print the services of the running daemon: `lvskit apply`, `lvskit run` and "
        "(as ipvsadm) `lvsadm -R` make them again.",
    )
    save.add_argument("--format", choices=("toml", "ipvsadm"), default="toml")
    save.set_defaults(func=_save)
    apply = subparsers.add_parser(
        "apply",
        help="make a running daemon's services those of a file",
        description="Make the services of the running daemon those of FILE by the least changes, "
        "each of which is printed; all of them or none. What stays keeps its connections.",
    )
    apply.add_argument("file", metavar="FILE.toml")
    apply.set_defaults(func=_apply)


def _status(arguments: argparse.Namespace) -> int:
    with connect() as client:
        status = client.call("status")
    print(json.dumps(status, indent=2) if arguments.json else summary(status))
    return 0


def summary(status: dict[str, Any]) -> str:
    """Return a status, as the daemon tells it, for people."""
    rates = status["rates"]
    lines = [
        f"{status['entries']} of at most {status['size']} entries in the connection table; "
        f"{status['shed']} shed, {status['refused']} refused",
        f"{_at_work(status['defences'])}; so far {status['dropped_entries']} entries dropped by "
        f"drop_entry, {status['dropped_packets']} packets by drop_packet",
        f"{rates['conns']} connections, {rates['inpkts']} packets and {rates['inbytes']} bytes "
        "per second",
    ]
    if any(status["lost"].values()):
        lost = ", ".join(f"{count} {place}" for place, count in status["lost"].items() if count)
        lines.append(f"packets lost: {lost}")
    for service in status["services"]:
        lines += ["", _service_line(service["config"])]
        if service["defences"] != status["defences"]:
            lines[-1] += f"; {_at_work(service['defences'])}"
        rows = [_server_row(server) for server in service["servers"]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = zip(row, widths, strict=True)
            lines.append("  " + "  ".join(text.ljust(width) for text, width in cells).rstrip())
        if not rows:
            lines.append("  no real servers")
    if not status["services"]:
        lines += ["", "no virtual services; add one: lvsadm -A -t ADDRESS:PORT"]
    return "\n".join(lines)


def _at_work(defences: list[str]) -> str:
    return f"at work: {', '.join(defences)}" if defences else "no defence at work"


def _service_line(config: dict[str, Any]) -> str:
    kind = next(kind for kind in ("tcp", "udp", "sctp", "fwmark") if kind in config)
    version = " (IPv6)" if config.get("ipv6") else ""
    parts = [f"{kind} {config[kind]}{version}", config.get("scheduler", "wlc")]
    if config.get("persistent"):
        parts.append(f"persistent {config['persistent']} s")
    parts += [f"{name}={value}" for name, value in config.get("settings", {}).items()]
    return ", ".join(parts)


def _server_row(server: dict[str, Any]) -> list[str]:
    config = server["config"]
    weight = config.get("weight", 1)
    notes = ["quiesced"] * (weight == 0) + ["overloaded"] * server["overloaded"]
    notes += ["unreachable"] * (not server["reachable"])
    return [
        config["address"],
        config.get("method", "tunnel"),
        f"weight {weight}",
        f"{server['active']} active",
        f"{server['inactive']} inactive",
        " ".join(notes),
    ]


def _save(arguments: argparse.Namespace) -> int:
    import msgspec

    from lvskit.config import toml
    from lvskit.config.ipvsadm_lines import to_lines
    from lvskit.config.model import Config

    with connect() as client:
        config = msgspec.convert(client.call("config"), Config)
    if arguments.format == "toml":
        print(toml.dumps(config), end="")
    else:
        for line in to_lines(config):
            print(line)
    return 0


def _apply(arguments: argparse.Namespace) -> int:
    import msgspec

    from lvskit.config import toml

    config = toml.read(arguments.file)
    with connect() as client:
        changes = client.call("apply", {"config": msgspec.to_builtins(config)})
    print("\n".join(changes) or "nothing to change")
    return 0
