"""Randomness that is the same in every version of Python: all of it comes from `random()`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Dice:
    """Throws that follow from a seed alone.

    Args:
        seed: any text.
    """

    def __init__(self, seed: str) -> None:
        # Only `random()` of a seeded generator is promised to stay the same between versions.
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        return self._random() < probability

    def between(self, low: int, high: int) -> int:
        """Return a whole number out of `low` to `high`, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        """Return one of `items`."""
        return items[int(self._random() * len(items))]

    def weighted(self, items: Mapping[Item, float]) -> Item:
        """Return one of the keys, as often as its value says."""
        point = self._random() * sum(items.values())
        chosen = None
        for item, weight in items.items():
            if weight <= 0:
                continue
            chosen = item
            point -= weight
            if point < 0:
                break
        if chosen is None:
            raise ValueError("nothing has a weight")
        return chosen

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """Return `items` in some order."""
        rest, order = list(items), []
        while rest:
            order.append(rest.pop(int(self._random() * len(rest))))
        return order
