"""The rings of sh, dh and mh say what they would choose."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lvskit_sched_hash.dh import DestinationHashing
from lvskit_sched_hash.mh import MaglevHashing, MaglevOptions
from lvskit_sched_hash.sh import SourceHashing, SourceOptions

from lvskit import TCP, UDP, Flow, ServiceKey
from lvskit.core.service import VirtualService
from lvskit.testing.reference import Pool
from lvskit.testing.rings import CLIENT, check_ring

PLACE = st.integers(0, 20)
WEIGHTS = st.sampled_from([0, 1, 1, 2, 3, 100, 256])
CLIENTS = st.tuples(st.binary(min_size=4, max_size=4), st.integers(0, 65535))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("flows"), st.lists(CLIENTS, min_size=1, max_size=9)),
        st.tuples(st.just("add"), WEIGHTS),
        st.tuples(st.just("remove"), PLACE),
        st.tuples(st.just("edit"), PLACE, WEIGHTS),
        st.tuples(st.just("overload"), PLACE, st.booleans()),
    ),
    max_size=15,
)
BOTH = list(product([False, True], repeat=2))
SCHEDULERS = [
    (DestinationHashing, None),
    *((SourceHashing, SourceOptions(*flags)) for flags in BOTH),
    *((MaglevHashing, MaglevOptions(*flags, slots=251)) for flags in BOTH),
]


@pytest.mark.parametrize(("factory", "options"), SCHEDULERS)
@given(weights=st.lists(WEIGHTS, min_size=1, max_size=5), steps=STEPS, last=st.lists(CLIENTS))
@settings(max_examples=30)
def test_a_ring_has_the_choice_for_every_client(
    factory: Any, options: Any, weights: list[int], steps: Any, last: Any
) -> None:
    pool = Pool(factory, options=[options])
    for weight in weights:
        pool.add(weight)
    for action, *arguments in [*steps, ("flows", last)]:
        if action == "flows":
            flows = [CLIENT._replace(caddr=address, cport=port) for address, port in arguments[0]]
            found = check_ring(pool.schedulers[0], pool.service, flows)
            if pool.servers and all(s.weight and not s.overloaded for s in pool.servers):
                assert found == len(flows)
        elif action == "add":
            pool.add(*arguments)
        elif pool.servers:
            place, *rest = arguments
            getattr(pool, action)(place % len(pool.servers), *rest)


@pytest.mark.parametrize(("factory", "options"), SCHEDULERS)
def test_clients_of_ipv6_too(factory: Any, options: Any) -> None:
    vip = bytes.fromhex("20010db8") + bytes(11) + b"\1"
    service = VirtualService(ServiceKey.of(UDP, vip, 53))
    pool = Pool(factory, options=[options])
    for _ in range(3):
        pool.add()
    service.servers.extend(pool.servers)
    flows = [Flow(UDP, vip[:15] + bytes([n]), 1000 + n, vip, 53) for n in range(50)]
    assert check_ring(factory(pool.servers, options), service, flows) == 50


def test_only_the_kernels_hash_and_a_table_that_fits() -> None:
    for options in (MaglevOptions(key="0123456789abcdef"), MaglevOptions(slots=16381)):
        pool = Pool(MaglevHashing, options=[options])
        pool.add()
        assert pool.schedulers[0].ring(pool.service) is None
    pool = Pool(MaglevHashing, options=[MaglevOptions(slots=8191)])
    pool.add()
    assert len(pool.schedulers[0].ring(pool.service).servers) == 8191


@pytest.mark.parametrize(("factory", "options"), [SCHEDULERS[0], SCHEDULERS[-1]])
def test_a_mark_has_no_address_to_go_by(factory: Any, options: Any) -> None:
    pool = Pool(factory, options=[options])
    pool.add()
    assert pool.schedulers[0].ring(VirtualService(ServiceKey.mark(7))) is None


@pytest.mark.parametrize(("factory", "options"), SCHEDULERS)
def test_nobody_to_choose_is_no_ring(factory: Any, options: Any) -> None:
    pool = Pool(factory, options=[options])
    assert pool.schedulers[0].ring(pool.service) is None
    pool.add(0)
    assert pool.schedulers[0].ring(pool.service) is None
    assert pool.schedulers[0].schedule(CLIENT._replace(protocol=TCP)) is None
