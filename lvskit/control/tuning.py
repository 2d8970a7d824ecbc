"""The settings of a director and its services, read and changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lvskit.config.settings import MEANINGS, in_order
from lvskit.config.status import SettingStatus
from lvskit.core import states
from lvskit.core.administration import BYPASS
from lvskit.core.director import Director
from lvskit.core.rules import Rules
from lvskit.errors import ConfigError
from lvskit.records import Registry
from lvskit.settings import NAMES, ServiceKey, Settings, check_settings, plain

Changes = Mapping[str, int | None]

_KERNEL = Settings()


def check(registry: Registry, changes: Changes, key: ServiceKey | None = None) -> None:
    """Raise `ConfigError` for `changes` that cannot be made, of the service `key` or of all."""
    try:
        check_settings(changes)
    except ConfigError as err:
        if key is None:
            raise
        raise ConfigError(f"{key}: {err}") from err
    if changes.get("cache_bypass"):
        registry.forwarder(BYPASS.method)


def given(director: Director, key: ServiceKey | None = None) -> dict[str, int]:
    """Return the values that the director has been given, or the service `key`."""
    return in_order(director.defaults if key is None else director.services.get(key).overrides)


def make(director: Director, values: Changes, key: ServiceKey | None = None) -> list[str]:
    """Let the values given be `values` and no others; return a line for each change."""
    wanted = {name: value for name, value in plain(values).items() if value is not None}
    present = given(director, key)
    changes: dict[str, int | None] = {
        name: wanted.get(name) for name in NAMES if wanted.get(name) != present.get(name)
    }
    if changes:
        director.tune(changes, key)
    where = "" if key is None else f" of {key}"
    return [
        f"took back {name}{where}" if value is None else f"set {name} = {value}{where}"
        for name, value in changes.items()
    ]


def table(director: Director, key: ServiceKey | None = None) -> Iterator[SettingStatus]:
    """Yield every setting as it holds for the director, or for the service `key`."""
    rules, own = director.rules, given(director)
    sources = [("director", own)]
    if key is not None:
        service = director.services.get(key)
        rules = service.rules
        sources.insert(0, ("service", service.overrides))
    for name in NAMES:
        yield SettingStatus(
            name=name,
            value=getattr(rules.settings, name),
            origin=next((origin for origin, values in sources if name in values), "kernel"),
            default=getattr(_KERNEL, name),
            meaning=MEANINGS[name],
        )


def defences(rules: Rules) -> list[str]:
    """Return the names of the defences that are at work."""
    found = {
        "drop_entry": rules.drop_entry,
        "drop_packet": rules.drop_rate != 0,
        "secure_tcp": rules.tcp.tables is states.TCP_SECURE,
    }
    return [name for name, at_work in found.items() if at_work]
