"""Where a fuzzed input's choices come from: bytes of a fuzzer, or hypothesis.

A generator that is written against `Source` serves both: the fuzzer mutates the bytes that the
choices are read from, hypothesis draws the same choices and shrinks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Source(Protocol):
    """A sequence of choices."""

    def more(self) -> bool:
        """Whether there is anything left to choose."""

    def number(self, low: int, high: int) -> int:
        """Choose from `low` to `high`, both included."""

    def blob(self, most: int) -> bytes:
        """Choose up to `most` bytes."""

    def pick(self, choices: Sequence[T]) -> T:
        """Choose one of `choices`."""


class Bytes:
    """Reads choices from `data`; where that has ended, everything is the lowest."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def more(self) -> bool:
        return self._at < len(self._data)

    def number(self, low: int, high: int) -> int:
        span = high - low
        return low + int.from_bytes(self._take((span.bit_length() + 7) // 8), "big") % (span + 1)

    def blob(self, most: int) -> bytes:
        return self._take(self.number(0, most))

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.number(0, len(choices) - 1)]

    def rest(self) -> bytes:
        return self._take(len(self._data))

    def _take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken


class Drawn:
    """Lets hypothesis choose; `steps` bounds how often there is more."""

    def __init__(self, data: st.DataObject, steps: int) -> None:
        self._data = data
        self._steps = steps

    def more(self) -> bool:
        self._steps -= 1
        return self._steps >= 0 and self._data.draw(st.integers(0, 15)) > 0

    def number(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))

    def blob(self, most: int) -> bytes:
        return self._data.draw(st.binary(max_size=most))

    def pick(self, choices: Sequence[T]) -> T:
        return self._data.draw(st.sampled_from(choices))
