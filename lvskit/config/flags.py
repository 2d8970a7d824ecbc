"""Names of schedulers' flags: as in the kernel, every scheduler has three."""

from __future__ import annotations

from lvskit.errors import ConfigError
from lvskit.records import SchedulerSpec


def flag_name(spec: SchedulerSpec, number: int) -> str:
    """Return the name that listings have for a scheduler's numbered flag."""
    if number <= len(spec.flags):
        return f"{spec.name}-{spec.flags[number - 1].replace('_', '-')}"
    return f"flag-{number}"


def flag_number(spec: SchedulerSpec, name: str) -> int:
    """Return the number of a flag by its name, the scheduler's own or `flag-1` … `flag-3`."""
    for number in (1, 2, 3):
        if name in (flag_name(spec, number), f"flag-{number}"):
            return number
    allowed = ", ".join(dict.fromkeys(flag_name(spec, n) for n in (1, 2, 3)))
    raise ConfigError(f"unknown flag {name!r} of scheduler {spec.name}; allowed: {allowed}")
