"""A configuration as a TOML file, and back, without loss.

Reading is msgspec's, strict in types and keys. Writing is our own few lines: the model is small,
the Python standard library writes no TOML, and what is written shall look as people write it:
tables, and only what differs from the defaults.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lvskit.config.check import problems
from lvskit.config.model import Config, Service
from lvskit.errors import ConfigError

if TYPE_CHECKING:
    from lvskit.plugins import Plugins

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read(path: str | Path, plugins: Plugins | None = None) -> Config:
    """Return what the file at `path` says; see `loads`."""
    try:
        data = Path(path).read_bytes()
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror}") from err
    return loads(data, str(path), plugins)


def loads(data: bytes | str, source: str = "TOML", plugins: Plugins | None = None) -> Config:
    """Return the configuration that TOML text describes.

    Args:
        data: the text.
        source: a file's name, for errors.
        plugins: check names and options against these too.

    Raises:
        ConfigError: what is wrong, a line for each fault: `source: message - at `path``.
    """
    try:
        config = msgspec.toml.decode(data, type=Config)
    except (msgspec.MsgspecError, ValueError) as err:
        raise ConfigError(f"{source}: {err}") from err
    except RecursionError as err:
        raise ConfigError(f"{source}: nested too deeply") from err
    found = problems(config, plugins)
    if found:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in found))
    return config


def dumps(config: Config) -> str:
    """Return `config` as TOML; `loads` gives it back.

    Raises:
        ConfigError: an option's value that TOML cannot hold (None, for one).
    """
    parts = []
    for name in ("director", "timeouts"):
        table = _table(getattr(config, name), f"$.{name}")
        if table:
            parts.append([f"[{name}]", *table])
    if config.settings:
        pairs = config.settings.items()
        lines = [f"{_key(name)} = {_value(value, f'$.settings.{name}')}" for name, value in pairs]
        parts.append(["[settings]", *lines])
    for index, service in enumerate(config.service):
        parts += _service(service, f"$.service[{index}]")
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n" if parts else ""


def _service(service: Service, path: str) -> Iterator[list[str]]:
    yield ["[[service]]", *_table(msgspec.structs.replace(service, server=[]), path)]
    for index, server in enumerate(service.server):
        yield ["[[service.server]]", *_table(server, f"{path}.server[{index}]")]


def _table(value: msgspec.Struct, path: str) -> list[str]:
    lines = []
    for field in msgspec.structs.fields(value):
        given = getattr(value, field.name)
        default = field.default
        if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        if given != default:
            lines.append(f"{field.name} = {_value(given, f'{path}.{field.name}')}")
    return lines


def _value(value: Any, path: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return repr(value)
        return "nan" if math.isnan(value) else f"{value:+}"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for pairs of surrogates, and DEL, which JSON leaves alone.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item, f"{path}[]") for item in value) + "]"
    if isinstance(value, dict):
        pairs = [f"{_key(k)} = {_value(v, f'{path}.{k}')}" for k, v in value.items()]
        return "{ " + ", ".join(pairs) + " }" if pairs else "{}"
    raise ConfigError(f"{value!r} cannot be written as TOML - at `{path}`")


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _value(key, "")
