"""Who is least and most loaded, against exact fractions."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from lvskit_sched_locality.load import least_loaded, most_loaded, overhead, too_busy

COUNTS = st.sampled_from([0, 0, 1, 2, 3, 256, 257, 258, 514])


@dataclass(eq=False)
class Server:
    """A real server without a director."""

    weight: int
    activeconns: int = 0
    inactconns: int = 0
    overloaded: bool = False
    available: bool = True


SERVERS: Any = st.lists(
    st.builds(
        Server,
        st.sampled_from([0, 1, 2, 3, 100, 2**31 - 1]),
        COUNTS,
        COUNTS,
        st.booleans(),
        st.booleans(),
    ),
    max_size=6,
)


def load(server: Any) -> Fraction:
    return Fraction(257 * server.activeconns + server.inactconns, server.weight)


@given(SERVERS)
def test_the_least_loaded_is_one_that_may_be_used(servers: list[Any]) -> None:
    usable = [s for s in servers if s.weight and not s.overloaded and s.available]
    assert least_loaded(servers) is min(usable, key=load, default=None)


@given(SERVERS)
def test_the_most_loaded_may_be_one_that_is_gone(servers: list[Any]) -> None:
    weighty = [server for server in servers if server.weight]
    assert most_loaded(servers) is max(weighty, key=load, default=None)


def test_loads_are_per_weight_and_of_equals_the_first_is_meant() -> None:
    light: Any = Server(1, 2)
    heavy: Any = Server(3, 3)
    assert most_loaded([heavy, light]) is light
    assert least_loaded([light, heavy]) is heavy
    twins: Any = [Server(2, 2), Server(1, 1)]
    assert most_loaded(twins) is least_loaded(twins) is twins[0]


def test_an_active_connection_weighs_as_much_as_257_inactive_ones() -> None:
    active: Any = Server(1, 1)
    inactive: Any = Server(1, 0, 257)
    assert overhead(active) == overhead(inactive) == 257


def test_too_busy() -> None:
    full: Any = Server(2, 3)
    for others, busy in (
        ([], False),
        ([Server(2, 1)], False),
        ([Server(3, 1)], True),
        ([Server(2, 1), Server(1, 0)], True),
        ([Server(0, 0)], False),
        ([Server(5, 2, overloaded=True)], True),
    ):
        known: Any = [full, *others]
        assert too_busy(full, known) is busy
        assert not too_busy(Server(3, 3), known)  # type: ignore[arg-type]
