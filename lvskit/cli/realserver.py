"""`lvskit realserver up` and `down`: make this host a real server of a tunnelled service."""

from __future__ import annotations

import argparse
from typing import Any

_UP = """\
Makes this host take the packets of the VIPs out of the director's IP-in-IP tunnel: a tunnel
device (the kernel's, or lvskit's own where the kernel has none) or a program of a plugin on the
interface, the VIPs on a device that answers no ARP, arp_ignore and arp_announce, no reverse path
filter on the tunnel device, and routes for the VIPs' replies with an MSS that makes clients'
packets fit the tunnel. Says each change with the command that does the same. A second call adds
VIPs, and repairs what was lost.
"""


def add_parser(subparsers: Any) -> None:
    """Add `realserver` to the parser of `lvskit`.

    Args:
        subparsers: what `ArgumentParser.add_subparsers` returned.
    """
    parser = subparsers.add_parser(
        "realserver", help="make this host a real server, or no longer", description=__doc__
    )
    verbs = parser.add_subparsers(required=True, metavar="up|down")
    up = verbs.add_parser("up", help="take the packets of one or more VIPs", description=_UP)
    up.add_argument(
        "--vip",
        action="append",
        required=True,
        metavar="ADDR",
        help="a virtual address; may be given several times",
    )
    up.add_argument(
        "--director",
        action="append",
        default=[],
        metavar="ADDR",
        help="take tunnel packets of this director only; may be given several times",
    )
    up.add_argument(
        "--via",
        default="auto",
        metavar="WAY",
        help="how packets come out of the tunnel: kernel, tun, veth, or a plugin's way, as xdp"
        " (default: auto, the first of kernel, tun and veth that is possible)",
    )
    up.add_argument(
        "--interface",
        metavar="IF",
        help="for a plugin's way, where tunnel packets come in (default: the one towards the"
        " directors, or towards the VIPs)",
    )
    up.add_argument(
        "--tunnel-mtu",
        type=int,
        metavar="BYTES",
        help="largest packet that passes the tunnel (default: the device's MTU less a header)",
    )
    up.add_argument("--dry-run", action="store_true", help="only say what would be done")
    up.set_defaults(func=_up)
    down = verbs.add_parser("down", help="undo exactly what `up` did")
    down.add_argument("--dry-run", action="store_true", help="only say what would be done")
    down.set_defaults(func=_down)


def _up(args: argparse.Namespace) -> int:
    from lvskit.hostsetup import realserver

    changes = realserver.up(
        args.vip,
        args.director,
        via=args.via,
        interface=args.interface,
        tunnel_mtu=args.tunnel_mtu,
        dry_run=args.dry_run,
    )
    _tell(changes, "nothing to do: this host serves them already", dry_run=args.dry_run)
    return 0


def _down(args: argparse.Namespace) -> int:
    from lvskit.hostsetup import realserver

    changes = realserver.down(dry_run=args.dry_run)
    _tell(changes, "nothing to undo: this host was not set up", dry_run=args.dry_run)
    return 0


def _tell(changes: list[Any], nothing: str, *, dry_run: bool) -> None:
    for change in changes:
        print(f"would {change}" if dry_run else change)
    if not changes:
        print(nothing)
