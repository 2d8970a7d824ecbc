"""The Director: services, packets, commands and time, in any order."""

from __future__ import annotations

from fuzzkit.source import Bytes
from fuzzkit.world import play


def check(data: bytes) -> None:
    play(Bytes(data))
