"""Ids of services: each keeps its own as long as a slot has it in its key."""

from __future__ import annotations

from collections.abc import Callable, Collection

from lvskit import ServiceKey


class Ids:
    """Gives out the ids of services, from 1.

    Args:
        end: the first number that is none.
        in_slots: returns the ids that slots have; asked when all have been given out.
    """

    def __init__(self, end: int, in_slots: Callable[[], Collection[int]]) -> None:
        self._end = end
        self._in_slots = in_slots
        self._known: dict[ServiceKey, int] = {}
        self._free: list[int] = []
        self._next = 1

    def get(self, key: ServiceKey) -> int | None:
        """Return a service's id, if it has one."""
        return self._known.get(key)

    def take(self, key: ServiceKey, number: int) -> bool:
        """Note an id that a service has from before; False where it has another."""
        self._next = max(self._next, number + 1)
        return self._known.setdefault(key, number) == number

    def give(self, key: ServiceKey, present: Collection[ServiceKey]) -> int | None:
        """Return a service's id, a new one where it has none; None where all are taken.

        Args:
            key: the service.
            present: the services that there are: theirs are not given away.
        """
        number = self._known.get(key)
        if number is not None:
            return number
        if self._next >= self._end and not self._free:
            self._reclaim(present)
        if self._free:
            number = self._free.pop()
        elif self._next < self._end:
            number, self._next = self._next, self._next + 1
        else:
            return None
        self._known[key] = number
        return number

    def _reclaim(self, present: Collection[ServiceKey]) -> None:
        gone = [key for key in self._known if key not in present]
        taken = self._in_slots() if gone else ()
        for key in gone:
            if self._known[key] not in taken:
                self._free.append(self._known.pop(key))
