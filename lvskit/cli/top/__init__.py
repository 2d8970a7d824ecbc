"""`lvskit top`: what passes now, per service and server, on a screen or as JSON."""

from __future__ import annotations

import argparse
import itertools
import time
from typing import TYPE_CHECKING, Any, Final

from lvskit.control.client import connect
from lvskit.errors import ConfigError, RpcError

if TYPE_CHECKING:
    from lvskit.config.status import Status

EXTRA: Final = "lvskit[top]"
"""What installs the screen."""
SILENCE_S: Final = 10.0
"""How long the daemon may take for a reading."""
LEAST_S: Final = 0.1
"""The shortest interval."""

_EPILOG = f"""\
examples:
  lvskit top                         watch
  lvskit top --interval 5            every five seconds
  lvskit top --json                  one reading, as one line
  lvskit top --json --count 60       a line a second, for a minute
  lvskit top --json --count 0 | jq .table   without end

Rates are what has passed between two readings. The screen needs the extra `{EXTRA}`, JSON does not.
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parsers of `lvskit`."""
    parser = subparsers.add_parser(
        "top",
        help="watch what passes, per service and server",
        description="Show what passes through the running daemon: rates and counts per service "
        "and server, the connection table, and what the datapath does.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds between readings (1)"
    )
    parser.add_argument("--json", action="store_true", help="for programs: one object a line")
    parser.add_argument(
        "--count", type=int, metavar="N", help="with --json: N lines (1); 0 = until interrupted"
    )
    parser.set_defaults(func=_top)


def read() -> Status:
    """Return a reading of the daemon, which may be another one each time.

    Raises:
        RpcError: it does not answer, or answers as another version of lvskit.
    """
    import msgspec

    from lvskit.config.status import Status

    with connect(timeout_s=SILENCE_S) as client:
        told = client.call("status")
    try:
        return msgspec.convert(told, Status)
    except msgspec.ValidationError as err:
        raise RpcError(f"the daemon is of another version of lvskit: {err}") from err


def _top(arguments: argparse.Namespace) -> int:
    if not arguments.interval >= LEAST_S:
        raise ConfigError(f"--interval {arguments.interval:g}; allowed: {LEAST_S} or more")
    if arguments.json:
        count = 1 if arguments.count is None else arguments.count
        if count < 0:
            raise ConfigError(f"--count {count}; allowed: 0 or more")
        return _print(arguments.interval, count)
    if arguments.count is not None:
        raise ConfigError("--count belongs to --json")
    try:
        from lvskit.cli.top.screen import Top
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] not in ("textual", "rich"):
            raise
        raise ConfigError(
            f"the screen of `lvskit top` needs textual, which is not installed: "
            f"pip install '{EXTRA}'; `lvskit top --json` works without it"
        ) from err
    read()  # what is wrong is said here, and not on a screen
    Top(arguments.interval).run()
    return 0


def _print(interval_s: float, count: int) -> int:
    import msgspec

    from lvskit.cli.top.figures import compare

    before, due = read(), time.monotonic()
    for number in itertools.count(1):
        due += interval_s
        time.sleep(max(0.0, due - time.monotonic()))
        now = read()
        print(msgspec.json.encode(compare(before, now)).decode(), flush=True)
        if number == count:
            break
        before = now
    return 0
