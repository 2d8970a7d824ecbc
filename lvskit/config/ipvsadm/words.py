"""Words of a command line to options, as popt takes them.

argparse comes close, and is not enough: ipvsadm reports a fault when it reaches it, so every
option must be acted on in the order given; its exit codes and messages name the word as it was
written; ``-w=5``, ``-w5`` and ``-iw 5`` are one thing, ``--exac`` is none; and ``-p`` takes the
next word only if that does not begin with ``-``. Source: popt(3), and what ipvsadm was seen to do.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class Takes(enum.Enum):
    """What follows an option."""

    NOTHING = enum.auto()
    VALUE = enum.auto()
    PERHAPS = enum.auto()


@dataclass(frozen=True, slots=True)
class Option:
    """An option: its name without dashes, its letter (or none), and what follows it."""

    name: str
    letter: str = ""
    takes: Takes = Takes.NOTHING


class BadWord(Exception):
    """A word that is no option, or not as its option wants it."""


class Words:
    """Reads the options of a command line one by one.

    Attributes:
        word: the last word taken, as it was written.
        others: words that are neither options nor their values, so far.
    """

    def __init__(self, words: Sequence[str], options: Iterable[Option]) -> None:
        self.word = ""
        self.others: list[str] = []
        self._left = list(reversed(words))
        self._cluster = ""  # letters of the word that are still to be taken
        self._only_others = False  # after "--"
        known = list(options)
        self._names = {option.name: option for option in known}
        self._letters = {option.letter: option for option in known if option.letter}

    def next(self) -> tuple[Option, str | None] | None:
        """Return the next option and its value; None at the end.

        Raises:
            BadWord: what is wrong; `word` is where.
        """
        if self._cluster:
            return self._take_letter()
        while self._left:
            word = self._take()
            if self._only_others or word == "-" or not word.startswith("-"):
                self.others.append(word)
            elif word == "--":
                self._only_others = True
            elif word.startswith("--"):
                return self._take_name(word[2:])
            else:
                self._cluster = word[1:]
                return self._take_letter()
        return None

    def _take(self) -> str:
        self.word = self._left.pop()
        return self.word

    def _take_name(self, word: str) -> tuple[Option, str | None]:
        name, equals, value = word.partition("=")
        if name not in self._names:
            raise BadWord("unknown option")
        option = self._names[name]
        if not equals:
            return option, self._value(option)
        if option.takes is Takes.NOTHING:
            raise BadWord("option does not take an argument")
        return option, value

    def _take_letter(self) -> tuple[Option, str | None]:
        letter, rest = self._cluster[0], self._cluster[1:]
        self._cluster = ""
        if letter not in self._letters:
            raise BadWord("unknown option")
        option = self._letters[letter]
        if option.takes is Takes.NOTHING:
            if rest.startswith("="):
                raise BadWord("option does not take an argument")
            self._cluster = rest
            return option, None
        return option, rest.removeprefix("=") if rest else self._value(option)

    def _value(self, option: Option) -> str | None:
        """Return the next word where `option` wants it."""
        if option.takes is Takes.NOTHING:
            return None
        if option.takes is Takes.PERHAPS and (not self._left or self._left[-1].startswith("-")):
            return None
        if not self._left:
            raise BadWord("missing argument")
        return self._take()
