"""Statistics against an exact re-derivation of the kernel's estimator."""

from __future__ import annotations

from dataclasses import astuple
from fractions import Fraction
from math import floor
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lvskit import Counters
from lvskit.estimator import PERIOD_S, Estimator

COUNT = st.integers(0, 10**6)
COUNTERS = st.builds(Counters, COUNT, COUNT, COUNT, COUNT, COUNT)
NAMES = ("conns", "inpkts", "outpkts", "inbytes", "outbytes")
FRACTION_BITS = {"conns": 10, "inpkts": 10, "outpkts": 10, "inbytes": 5, "outbytes": 5}


def exact_rate(increments: list[int], bits: int) -> int:
    """Return what a rate shows after these two-second periods.

    An exponential average: a quarter of the newest rate, rounded down in a fixed-point number with
    so many fraction bits, shown rounded to the nearest, a half down.
    """
    average = Fraction(0)
    unit = Fraction(1, 1 << bits)
    for increment in increments:
        rate = Fraction(increment, 2)
        average += floor((rate - average) / 4 / unit) * unit
    return -floor(-(average - Fraction(1, 2)) / 1)  # the ceiling of half a unit less


@given(st.lists(COUNTERS, max_size=12))
def test_rates_are_exact(increments: list[Counters]) -> None:
    estimator, total = Estimator(Counters()), Counters()
    for increment in increments:
        total += increment
        estimator.tick(total)
    for name, rate in zip(NAMES, astuple(estimator.rates()), strict=True):
        series = [getattr(increment, name) for increment in increments]
        assert rate == exact_rate(series, FRACTION_BITS[name]), name


@given(st.integers(0, 100_000))
def test_a_steady_rate_is_approached(per_second: int) -> None:
    estimator, total = Estimator(Counters()), Counters()
    for _ in range(80):
        total += Counters(*[2 * per_second] * 5)
        estimator.tick(total)
    assert astuple(estimator.rates()) == (per_second,) * 5


@given(st.lists(st.sampled_from(["tick", "zero", "count"]), max_size=20), COUNTERS, COUNTERS)
def test_shown_lags_until_the_tick_and_starts_again_at_zero(
    steps: list[Any], start: Counters, more: Counters
) -> None:
    """-Z goes by what was shown, not by what has been counted since the tick."""
    counters = start + Counters()
    estimator = Estimator(counters)
    folded, zero = start, Counters()
    for step in steps:
        if step == "count":
            counters.conns += more.conns
            counters.inpkts += more.inpkts
            counters.outpkts += more.outpkts
            counters.inbytes += more.inbytes
            counters.outbytes += more.outbytes
        elif step == "tick":
            estimator.tick(counters)
            folded = counters + Counters()
        else:
            estimator.zero()
            zero = folded
            assert astuple(estimator.rates()) == (0,) * 5
        assert estimator.shown() == folded - zero


def test_zeroing_forgets_the_rates_but_not_what_comes_next() -> None:
    estimator = Estimator(Counters())
    estimator.tick(Counters(1000, 1000, 1000, 1000, 1000))
    estimator.zero()
    estimator.tick(Counters(1000, 1000, 1000, 1000, 1000))
    assert astuple(estimator.rates()) == (0,) * 5
    estimator.tick(Counters(1080, 1160, 1000, 1320, 1000))
    assert astuple(estimator.rates()) == (10, 20, 0, 40, 0)
    assert estimator.shown() == Counters(80, 160, 0, 320, 0)


def test_the_period() -> None:
    assert PERIOD_S == 2.0
    assert Counters(1, 2, 3, 4, 5) + Counters(10, 20, 30, 40, 50) == Counters(11, 22, 33, 44, 55)
    assert Counters(10, 20, 30, 40, 50) - Counters(1, 2, 3, 4, 5) == Counters(9, 18, 27, 36, 45)
