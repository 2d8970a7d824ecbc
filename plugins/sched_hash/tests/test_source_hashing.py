"""sh and dh against their written-out references, the kernel's numbers, and their descriptions."""

from __future__ import annotations

import ipaddress
from collections import Counter
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lvskit_sched_hash.dh import DestinationHashing
from lvskit_sched_hash.fold import bucket, fold
from lvskit_sched_hash.sh import BUCKETS, SourceHashing, SourceOptions, deal

from lvskit import TCP, Flow
from lvskit.testing.reference import DestinationHash, Pool, SourceHash

PLACE = st.integers(0, 20)
WEIGHTS = st.sampled_from([0, 1, 1, 2, 3, 100, 255, 256, 2**31 - 1])
ADDRESSES = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
PORTS = st.integers(0, 65535)
FLOWS = st.builds(Flow, st.just(TCP), ADDRESSES, PORTS, ADDRESSES, PORTS)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pick"), FLOWS),
        st.tuples(st.just("pick"), FLOWS),
        st.tuples(st.just("pick"), FLOWS),
        st.tuples(st.just("add"), WEIGHTS),
        st.tuples(st.just("remove"), PLACE),
        st.tuples(st.just("edit"), PLACE, WEIGHTS),
        st.tuples(st.just("overload"), PLACE, st.booleans()),
    ),
    max_size=40,
)


def play(pool: Pool, steps: list[Any]) -> None:
    """Do what hypothesis came up with; `Pool.pick` compares the schedulers."""
    for action, *arguments in steps:
        if action in ("pick", "add"):
            getattr(pool, action)(*arguments)
        elif pool.servers:
            place, *rest = arguments
            getattr(pool, action)(place % len(pool.servers), *rest)


def sh(fallback: bool = False, port: bool = False) -> Any:
    return lambda servers, _: SourceHashing(servers, SourceOptions(fallback, port))


@given(st.booleans(), st.booleans(), st.lists(WEIGHTS, max_size=5), STEPS)
def test_sh_is_the_circle_written_out(
    fallback: bool, port: bool, weights: list[int], steps: list[Any]
) -> None:
    flags = {number for number, on in ((1, fallback), (2, port)) if on}
    pool = Pool(sh(fallback, port), SourceHash, options=[None, flags])
    for weight in weights:
        pool.add(weight)
    play(pool, steps)


@given(st.lists(WEIGHTS, max_size=5), STEPS)
def test_dh_is_the_circle_written_out(weights: list[int], steps: list[Any]) -> None:
    pool = Pool(DestinationHashing, DestinationHash)
    for weight in weights:
        pool.add(weight)
    play(pool, steps)


@pytest.mark.parametrize("factory", [SourceHashing, sh(fallback=True), DestinationHashing])
def test_either_may_be_made_for_servers_that_are_there(factory: Any) -> None:
    pool = pool_of(factory, 1)
    pool.schedulers = [factory(pool.servers, None)]
    assert pool.pick(client("192.0.2.1")) == 0


@pytest.mark.parametrize("factory", [SourceHashing, DestinationHashing])
def test_buckets_are_dealt_when_servers_change_and_not_for_every_flow(factory: Any) -> None:
    class Watched(list[Any]):
        dealt = 0

        def __iter__(self) -> Any:
            self.dealt += 1
            return super().__iter__()

    servers = Watched(pool_of(factory, 2, 1).servers)
    scheduler = factory(servers, None)
    for last in range(1, 9):
        scheduler.schedule(client(f"192.0.2.{last}"))
    assert servers.dealt == 1
    scheduler.server_added(servers[0])
    scheduler.schedule(client("192.0.2.1"))
    assert servers.dealt == 2


def client(address: str, port: int = 40000, vaddr: str = "10.0.0.1") -> Flow:
    caddr = ipaddress.ip_address(address).packed
    return Flow(TCP, caddr, port, ipaddress.ip_address(vaddr).packed, 80)


def pool_of(factory: Any, *weights: int) -> Pool:
    """Return a pool with these weights in the order of the list, so numbered from the end."""
    pool = Pool(factory)
    for weight in reversed(weights):
        pool.add(weight)
    return pool


@pytest.mark.parametrize(
    ("address", "port", "expected"),
    [
        ("192.0.2.1", 0, 50),
        ("192.0.2.1", 40000, 214),
        ("198.51.100.7", 0, 171),
        ("198.51.100.7", 40000, 79),
    ],
)
def test_the_buckets_that_the_kernel_uses(address: str, port: int, expected: int) -> None:
    assert bucket(fold(ipaddress.ip_address(address).packed) + port) == expected


def test_the_port_carries_over_32_bits() -> None:
    assert bucket(fold(b"\xff" * 4) + 1) == bucket(0)
    assert bucket(fold(b"\xff" * 4) + 40001) == bucket(40000)


def test_buckets_are_dealt_in_the_order_of_the_list_by_weight() -> None:
    servers = pool_of(sh(), 2, 1, 0).servers
    assert deal(servers) == [servers[n] for n in [0, 0, 1, 2] * 64]
    servers = pool_of(sh(), 100, 200, 50).servers
    assert deal(servers) == [servers[0]] * 100 + [servers[1]] * 156
    assert deal([]) == []


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_weights_share_the_buckets_while_they_fit(weights: list[int]) -> None:
    """To a round: each has its weight as often as the circle goes round, and at most once more."""
    servers = pool_of(sh(), *weights).servers
    owned = Counter(deal(servers))
    whole = sum(max(weight, 1) for weight in weights)
    for server in servers:
        turn = max(server.weight, 1)
        rounds = BUCKETS // whole
        assert rounds * turn <= owned[server] <= (rounds + 1) * turn


def test_a_client_comes_back_and_its_port_does_not_matter() -> None:
    pool = pool_of(sh(), 1, 1, 1)
    homes = {pool.pick(client("192.0.2.1", port)) for port in range(1024, 1124)}
    assert len(homes) == 1
    assert len({pool.pick(client(f"192.0.2.{host}")) for host in range(100)}) == 3


def test_with_port_the_connections_of_one_client_spread() -> None:
    pool = pool_of(sh(port=True), 1, 1, 1)
    assert {pool.pick(client("192.0.2.1", port)) for port in range(1024, 1124)} == {0, 1, 2}
    assert pool.pick(client("192.0.2.1", 1024)) == pool.pick(client("192.0.2.1", 1024))


def test_a_quiesced_server_keeps_one_bucket_in_which_clients_are_refused() -> None:
    pool = pool_of(sh(), 3, 0)  # A A A B A A A B ...
    lost = [host for host in range(256) if pool.pick(client(f"192.0.2.{host}")) is None]
    assert {bucket(fold(bytes([192, 0, 2, host]))) % 4 for host in lost} == {3}
    assert lost


def test_an_overloaded_server_refuses_and_fallback_finds_another() -> None:
    plain, falling = pool_of(sh(), 1, 1), pool_of(sh(fallback=True), 1, 1)
    mine = [host for host in range(50) if plain.pick(client(f"192.0.2.{host}")) == 1]
    for pool in (plain, falling):
        pool.overload(0)
    assert {plain.pick(client(f"192.0.2.{host}")) for host in mine} == {None}
    assert {falling.pick(client(f"192.0.2.{host}")) for host in range(50)} == {0}
    falling.overload(1)
    assert falling.pick(client("192.0.2.1")) is None


def test_fallback_begins_twice_as_far_round_as_the_bucket() -> None:
    """The kernel's rule: the bucket's number is added to the hash once more."""
    pool = pool_of(sh(fallback=True), 50, 1, 100, 105)  # 192.0.2.1 has bucket 50, then 100
    assert pool.pick(client("192.0.2.1")) == 2
    pool.overload(1)
    assert pool.pick(client("192.0.2.1")) == 1
    pool.overload(2)
    assert pool.pick(client("192.0.2.1")) == 0
    pool.overload(3)
    assert pool.pick(client("192.0.2.1")) == 3


def test_dh_ignores_clients_and_weights() -> None:
    pool = pool_of(DestinationHashing, 100, 1)
    one = {pool.pick(client(f"192.0.2.{host}", vaddr="172.16.0.5")) for host in range(64)}
    assert len(one) == 1
    homes = Counter(pool.pick(client("192.0.2.1", vaddr=f"172.16.0.{n}")) for n in range(256))
    assert min(homes[0], homes[1]) > 100


def test_dh_refuses_where_the_server_may_not_be_used() -> None:
    pool = pool_of(DestinationHashing, 1, 1)
    vips = [f"172.16.0.{n}" for n in range(20)]
    before = [pool.pick(client("192.0.2.1", vaddr=vip)) for vip in vips]
    pool.edit(0, 0)
    after = [pool.pick(client("192.0.2.1", vaddr=vip)) for vip in vips]
    assert after == [None if home == 1 else home for home in before]
    pool.edit(0, 7)
    assert [pool.pick(client("192.0.2.1", vaddr=vip)) for vip in vips] == before


@pytest.mark.parametrize("factory", [sh(), sh(fallback=True), DestinationHashing])
def test_nobody_is_chosen_where_nobody_may_be(factory: Any) -> None:
    pool = Pool(factory)
    assert pool.pick() is None
    pool.add(0)
    assert pool.pick() is None
    pool.add(1)
    pool.overload(0)
    assert pool.pick() is None
    pool.remove(1)
    assert pool.pick() is None
    pool.overload(0, False)
    assert pool.pick() == 1
    pool.remove(0)
    assert pool.pick() is None


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), FLOWS)
def test_the_same_flow_has_the_same_server_whoever_asks(weights: list[int], flow: Flow) -> None:
    for fallback, port in product((False, True), repeat=2):
        pools = [pool_of(sh(fallback, port), *weights) for _ in range(2)]
        assert pools[0].pick(flow) == pools[1].pick(flow) == pools[0].pick(flow)
