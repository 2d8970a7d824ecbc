"""`lvskit plugins`: what is installed, where it came from, and what did not load."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from lvskit.control.datapaths import BUILTIN, builtin
from lvskit.plugins import Plugins, Provided, Source, load_plugins

_COLUMNS = ("kind", "name", "distribution", "version", "summary")


def add_parser(subparsers: Any) -> None:
    """Add the command to the parsers of `lvskit`."""
    parser = subparsers.add_parser(
        "plugins",
        help="list the installed plugins, and those that did not load",
        description=(
            "List the installed schedulers, forwarding methods, datapaths, decapsulators and other "
            "hooks with the distributions that brought them. The exit status is 1 if any did not "
            "load."
        ),
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the list; return 1 where a plugin did not load."""
    logging.getLogger("lvskit.plugins").setLevel(logging.ERROR)  # the list says what failed
    plugins = load_plugins()
    rows = listing(plugins)
    if arguments.json:
        failures = [
            {
                "entry_point": failure.source.entry_point,
                "distribution": failure.source.distribution,
                "version": failure.source.version,
                "error": str(failure.error),
            }
            for failure in plugins.failures
        ]
        print(json.dumps({"plugins": rows, "failures": failures}, indent=2))
        return 1 if plugins.failures else 0
    print(table(rows))
    if not plugins.schedulers and not plugins.forwarders:
        hint = "pip install lvskit-sched-wlc lvskit-fwd-tunnel"
        print(f"no scheduler and no forwarding method is installed; {hint}", file=sys.stderr)
    for failure in plugins.failures:
        print(f"not loaded: {failure.error}", file=sys.stderr)
    return 1 if plugins.failures else 0


def listing(plugins: Plugins) -> list[dict[str, str]]:
    """Return a row for each record, then one for each plugin with hooks besides."""
    kinds: dict[str, Mapping[str, Provided[Any]]] = {
        "scheduler": plugins.schedulers,
        "forwarder": plugins.forwarders,
        "datapath": plugins.datapaths,
        "decapsulator": plugins.decapsulators,
    }
    rows = [
        _row(kind, name, provided.source, provided.spec.summary)
        for kind, records in kinds.items()
        for name, provided in sorted(records.items())
    ]
    own = Source("", "lvskit", version("lvskit"))
    for name in BUILTIN:
        spec = builtin(name)
        rows.append(_row("datapath", name, own, spec.summary if spec else ""))
    for source, hooks in plugins.hooks.items():
        others = [hook for hook in hooks if not hook.startswith("lvskit_register_")]
        if others:
            rows.append(_row("hooks", source.entry_point, source, ", ".join(others)))
    return rows


def _row(kind: str, name: str, source: Source, summary: str) -> dict[str, str]:
    values = (kind, name, source.distribution, source.version, summary)
    return dict(zip(_COLUMNS, values, strict=True))


def table(rows: list[dict[str, str]]) -> str:
    """Return `rows` in aligned columns under a heading."""
    lines = [[column.upper() for column in _COLUMNS]]
    lines += [[row[column] for column in _COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
