"""``lvskit config``: check a configuration file, and turn one notation into the other."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lvskit.errors import ConfigError

if TYPE_CHECKING:
    from lvskit.config.model import Config
    from lvskit.plugins import Plugins

NOTATIONS = ("toml", "ipvsadm")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `subparsers`."""
    parser = subparsers.add_parser(
        "config",
        help="check or convert a configuration file",
        description="Check a configuration file, or turn one notation into the other: TOML, and "
        "the lines of ipvsadm that `lvsadm -R` reads.",
    )
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="config_command"
    )
    check = commands.add_parser(
        "check",
        help="say what is wrong with a file",
        description="Say everything that is wrong with a file: syntax, types, unknown keys, "
        "addresses, ranges, duplicates, and names of plugins that are not installed.",
    )
    check.add_argument("file", metavar="FILE", help="the file; - = standard input")
    check.add_argument(
        "--no-plugins",
        action="store_true",
        help="leave names of schedulers and forwarding methods alone",
    )
    check.set_defaults(func=_check)
    convert = commands.add_parser(
        "convert",
        help="turn TOML into ipvsadm's lines, or back",
        description="Turn one notation into the other, without loss.",
    )
    convert.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="the file; - or none = standard input"
    )
    convert.add_argument(
        "--from", dest="source", choices=NOTATIONS, help="notation read (default: by its looks)"
    )
    convert.add_argument("--to", choices=NOTATIONS, help="notation written (default: the other)")
    convert.set_defaults(func=_convert)
    for command in (check, convert):
        command.epilog = "exit status: 0 if all is well, 1 if not"


def _check(arguments: argparse.Namespace) -> int:
    from lvskit.config.check import problems
    from lvskit.plugins import load_plugins

    plugins = None if arguments.no_plugins else load_plugins()
    try:
        text, name = _text(arguments.file)
        config = _read(text, name, _looks(text), plugins)
        found = [f"{name}: {problem}" for problem in problems(config, plugins)]
    except ConfigError as err:
        found = str(err).splitlines()
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


def _convert(arguments: argparse.Namespace) -> int:
    from lvskit.config import toml
    from lvskit.config.ipvsadm_lines import to_lines
    from lvskit.config.model import DirectorConfig

    try:
        text, name = _text(arguments.file)
        source = arguments.source or _looks(text)
        target = arguments.to or next(other for other in NOTATIONS if other != source)
        config = _read(text, name, source)
        written = toml.dumps(config) if target == "toml" else "\n".join([*to_lines(config), ""])
    except ConfigError as err:
        print(err, file=sys.stderr)
        return 1
    sys.stdout.write(written)
    if target == "ipvsadm" and config.director != DirectorConfig():
        print(f"{name}: ipvsadm's lines have no place for [director]: left out", file=sys.stderr)
    return 0


def _text(file: str) -> tuple[str, str]:
    """Return the text of `file` and its name for messages."""
    if file == "-":
        return sys.stdin.read(), "standard input"
    try:
        return Path(file).read_text(encoding="utf-8"), file
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{file}: {err}") from err


def _looks(text: str) -> str:
    """Return the notation of `text`: ipvsadm's lines begin with an option."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return "ipvsadm" if first.startswith(("-", "ipvsadm ")) else "toml"


def _read(text: str, name: str, notation: str, plugins: Plugins | None = None) -> Config:
    from lvskit.config import toml
    from lvskit.config.ipvsadm_lines import from_lines

    if notation == "toml":
        return toml.loads(text, name, plugins)
    return from_lines(text.split("\n"), source=name)
