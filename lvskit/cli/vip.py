"""`lvskit vip add` and `del`: the virtual address on the director itself."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add `vip` to the parser of `lvskit`.

    Args:
        subparsers: what `ArgumentParser.add_subparsers` returned.
    """
    parser = subparsers.add_parser(
        "vip", help="add or remove a virtual address of this director", description=__doc__
    )
    verbs = parser.add_subparsers(required=True, metavar="add|del")
    add = verbs.add_parser("add", help="take the address, and announce it to the neighbours")
    add.add_argument("address", metavar="ADDR")
    add.add_argument(
        "--interface", metavar="IF", help="default: the one in whose subnet the address is"
    )
    add.add_argument(
        "--label", metavar="IF:N", help="the alias that ifconfig shows (default: IF:0; IPv4 only)"
    )
    add.set_defaults(func=_add)
    delete = verbs.add_parser("del", help="give the address up")
    delete.add_argument("address", metavar="ADDR")
    delete.add_argument("--interface", metavar="IF", help="default: where it is")
    delete.set_defaults(func=_delete)


def _add(args: argparse.Namespace) -> int:
    from lvskit.hostsetup import add_vip

    for change in add_vip(args.address, args.interface, args.label):
        print(change)
    return 0


def _delete(args: argparse.Namespace) -> int:
    from lvskit.hostsetup import delete_vip

    for change in delete_vip(args.address, args.interface):
        print(change)
    return 0
