"""`lvskit.Ring`, and the check that a scheduler's ring agrees with it."""

from __future__ import annotations

from typing import Any

import pytest

from lvskit import Ring, SchedulerBase
from lvskit.testing.reference import Pool
from lvskit.testing.rings import CLIENT, check_ring


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"servers": []}, "a ring of 0 places; allowed: 1 to 8192"),
        ({"servers": [None] * 8193}, "a ring of 8193 places; allowed: 1 to 8192"),
        ({"servers": [None] * 255, "by": "sh"}, "a ring by sh of 255 places; allowed: 256"),
        ({"servers": [None], "by": "lc"}, "a ring by 'lc'; allowed: turn, sh, mh"),
        ({"servers": [None], "port": True}, "for which the client's port cannot count"),
    ],
)
def test_what_no_ring_can_be(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Ring(**given)


class Newest(SchedulerBase):
    """Always the newest server; its ring is what `given` returns."""

    given: Any = staticmethod(lambda servers: None)

    def schedule(self, flow: Any) -> Any:
        return self.servers[0]

    def ring(self, service: Any) -> Any:
        return self.given(self.servers)


def checked(given: Any, flows: int = 3) -> int:
    """Return what the check says of a scheduler with such a ring and two servers."""
    pool = Pool(Newest)
    pool.add()
    pool.add()
    (scheduler,) = pool.schedulers
    assert isinstance(scheduler, Newest)
    scheduler.given = given
    return check_ring(scheduler, pool.service, [CLIENT] * flows)


def test_a_ring_that_agrees() -> None:
    assert checked(lambda servers: Ring(servers=servers[:1])) == 3
    assert checked(lambda servers: Ring(servers=[servers[0]] * 256, by="sh", port=True)) == 3
    assert checked(lambda servers: Ring(servers=[servers[0]] * 7, by="mh")) == 3


def test_a_place_may_be_the_schedulers() -> None:
    assert checked(lambda servers: Ring(servers=[None, servers[0]])) == 1
    assert checked(lambda servers: None) == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda servers: Ring(servers=servers[::-1]), "flow 0: .* in the ring, .* chosen"),
        (lambda servers: Ring(servers=servers), "flow 1: .* in the ring, .* chosen"),
        (lambda servers: servers, "ring returned"),
        (lambda servers: Ring(servers=["x"]), "'x' is none of the service's servers"),
    ],
)
def test_a_ring_that_does_not_agree(given: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        checked(given)


def test_schedulers_have_no_ring_unless_they_say_so() -> None:
    pool = Pool(SchedulerBase)  # type: ignore[arg-type]  # it has no `schedule`
    assert pool.schedulers[0].ring(pool.service) is None
