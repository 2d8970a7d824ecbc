"""Numbers for people, in few characters: amounts, times, bars, and the course of a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_UNITS: Final = "kMGTPE"
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_HEIGHTS: Final = "▁▂▃▄▅▆▇█"


def short(value: float | None) -> str:
    """Return an amount in at most five characters; a dash where there is none.

    >>> [short(value) for value in (None, 0, 0.04, 0.998, 7.25, 64, 999.7, 12_345, 1e6, 2**62)]
    ['-', '0', '0.0', '1', '7.2', '64', '1k', '12.3k', '1M', '4.6E']
    """
    if value is None:
        return "-"
    unit = ""
    for larger in _UNITS:
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    digits = 1 if value < (99.95 if unit else 9.95) else 0
    text = f"{value:.{digits}f}"
    return (text if text == "0.0" and value else text.removesuffix(".0")) + unit


def duration(seconds: float) -> str:
    """Return a time in its two largest units.

    >>> duration(59.9), duration(3600 * 5 + 61), duration(86400 * 12 + 3600)
    ('59 s', '5 h 1 min', '12 d 1 h')
    """
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def bar(share: float, width: int) -> str:
    """Return a bar of `width` characters, filled by `share`, 0 to 1.

    >>> bar(0.3, 5)
    '█▌   '
    """
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    filled, rest = divmod(eighths, 8)
    return ("█" * filled + _EIGHTHS[rest] * (rest > 0)).ljust(width)


def course(values: Sequence[float], width: int) -> str:
    """Return the last `width` of `values` as columns, as high as they are to the largest of them.

    >>> course([5, 0, 1, 2, 8], 6)
    ' ▅ ▁▂█'
    """
    shown = tuple(values)[-width:] if width > 0 else ()
    most = max(shown, default=0)
    heights = len(_HEIGHTS)
    columns = (
        _HEIGHTS[max(1, round(value / most * heights)) - 1] if value > 0 else " " for value in shown
    )
    return "".join(columns).rjust(max(width, 0))


def fit(text: str, width: int) -> str:
    """Return `text` in at most `width` characters: where it is longer, without its middle.

    >>> fit("tcp [2001:db8::176]:443", 16)
    'tcp [20…176]:443'
    """
    if len(text) <= width:
        return text
    end = width // 2
    return f"{text[: width - end - 1]}…{text[-end:] if end else ''}"[:width]
