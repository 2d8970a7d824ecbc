"""mh against the written-out Maglev, the kernel's numbers, and its own promises."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from math import gcd
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lvskit_sched_hash import mh as module
from lvskit_sched_hash.mh import SLOTS, MaglevHashing, MaglevOptions, populate

from lvskit import TCP, Flow
from lvskit.testing.reference import Maglev, Pool

SECRET = "00112233445566778899aabbccddeeff"
PLACE = st.integers(0, 20)
WEIGHTS = st.sampled_from([0, 1, 1, 2, 3, 50, 100, 65535, 2**31 - 1])
ADDRESSES = st.binary(min_size=4, max_size=4)
FLOWS = st.builds(
    Flow, st.just(TCP), ADDRESSES, st.integers(0, 65535), st.just(bytes(4)), st.just(80)
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pick"), FLOWS),
        st.tuples(st.just("pick"), FLOWS),
        st.tuples(st.just("add"), WEIGHTS),
        st.tuples(st.just("remove"), PLACE),
        st.tuples(st.just("edit"), PLACE, WEIGHTS),
        st.tuples(st.just("overload"), PLACE, st.booleans()),
    ),
    max_size=15,
)


@dataclass(eq=False)
class Server:
    """A real server without a director."""

    name: str
    weight: int = 1
    port: int = 80
    overloaded: bool = False
    available: bool = True

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "weight" and (value or not hasattr(self, "last_weight")):
            self.last_weight = value

    @property
    def address(self) -> bytes:
        return ipaddress.ip_address(self.name).packed


def client(address: str, port: int = 40000) -> Flow:
    return Flow(TCP, ipaddress.ip_address(address).packed, port, bytes(4), 80)


def three(*weights: int) -> list[Any]:
    return [Server(f"10.0.0.{n}", weight) for n, weight in enumerate(weights or (1, 1, 1), 1)]


def table(servers: list[Any], **options: Any) -> list[str]:
    weighted = [(server, server.weight) for server in servers]
    return [server.name for server in populate(weighted, MaglevOptions(**options), 4)]


def chosen(servers: list[Any], *flows: Flow, **options: Any) -> list[str | None]:
    """Return the name of the server of each flow."""
    scheduler = MaglevHashing(servers, MaglevOptions(**options))
    found: list[Any] = [scheduler.schedule(flow) for flow in flows]
    return [server and server.name for server in found]


@given(
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, SECRET]),
    st.lists(WEIGHTS, max_size=4),
    STEPS,
)
@settings(max_examples=60)
def test_mh_is_maglev_written_out(
    fallback: bool, port: bool, key: str | None, weights: list[int], steps: list[Any]
) -> None:
    options = MaglevOptions(fallback, port, key, slots=251)
    flags = {number for number, on in ((1, fallback), (2, port)) if on}
    pool = Pool()
    for weight in weights:
        pool.add(weight)
    pool.schedulers = [
        MaglevHashing(pool.servers, options),
        Maglev(pool.servers, flags, slots=251, key=key),
    ]
    for action, *arguments in steps:
        if action in ("pick", "add"):
            getattr(pool, action)(*arguments)
        elif pool.servers:
            place, *rest = arguments
            getattr(pool, action)(place % len(pool.servers), *rest)


# --- the kernel's numbers ---


def test_the_slots_that_the_kernel_gives() -> None:
    assert Counter(table(three())) == {"10.0.0.1": 1365, "10.0.0.2": 1364, "10.0.0.3": 1364}
    shares = Counter(table(three(100, 200, 50)))
    assert shares == {"10.0.0.1": 1170, "10.0.0.2": 2339, "10.0.0.3": 584}


def test_the_servers_that_the_kernel_chooses() -> None:
    flows = client("192.0.2.1"), client("198.51.100.7")
    assert chosen(three(), *flows) == ["10.0.0.3", "10.0.0.1"]


def test_a_removed_server_leaves_the_others_clients_where_they_are() -> None:
    before, after = table(three()), table(three()[:2])
    stayed = [pair for pair in zip(before, after, strict=True) if pair[0] != "10.0.0.3"]
    assert len(stayed) == 2729
    assert sum(old != new for old, new in stayed) == 2


@pytest.mark.parametrize(
    ("weights", "turns"),
    [
        ((1, 1), (1, 1)),
        ((63, 1), (63, 1)),
        ((64, 1), (32, 1)),
        ((100, 1), (50, 1)),
        ((1000, 999), (62, 62)),
        ((128, 64), (2, 1)),
        ((2**31 - 1, 2**30), (63, 32)),
    ],
)
def test_turns_of_4093_slots_are_halved_until_they_are_below_64(
    weights: tuple[int, int], turns: tuple[int, int]
) -> None:
    assert_shared(Counter(table(three(*weights))), turns, 4093)


@pytest.mark.parametrize(("slots", "limit"), [(251, 16), (1021, 32), (16381, 128), (65537, 256)])
def test_more_slots_tell_more_turns_apart(slots: int, limit: int) -> None:
    below, at = Counter(table(three(limit - 1, 1), slots=slots)), (limit - 1, 1)
    assert_shared(below, at, slots)
    assert_shared(Counter(table(three(limit, 1), slots=slots)), (limit // 2, 1), slots)


def assert_shared(owned: Counter[str], turns: tuple[int, ...], slots: int) -> None:
    """Check that every server had its turns in every round, the last of which may be cut off."""
    rounds = slots // sum(turns)
    for server, turn in zip(three(*turns), turns, strict=True):
        assert rounds * turn <= owned[server.name] <= (rounds + 1) * turn


# --- its promises ---


@given(st.lists(st.integers(1, 15), min_size=1, max_size=6), st.sampled_from([251, 1021, 4093]))
@settings(max_examples=40)
def test_weights_that_need_no_halving_share_the_slots(weights: list[int], slots: int) -> None:
    turns = tuple(weight // gcd(*weights) for weight in weights)
    assert_shared(Counter(table(three(*weights), slots=slots)), turns, slots)


@given(st.integers(2, 9), st.data())
@settings(max_examples=30)
def test_few_clients_move_when_a_server_leaves(count: int, data: st.DataObject) -> None:
    servers = three(*[1] * count)
    gone = data.draw(st.sampled_from(servers))
    before, after = table(servers), table([s for s in servers if s is not gone])
    moved = sum(old != new for old, new in zip(before, after, strict=True) if old != gone.name)
    assert moved < 4093 * 0.05


def test_quiescing_moves_nobody_and_refuses_the_servers_own_clients() -> None:
    servers = three(3, 2, 1)
    scheduler = MaglevHashing(servers)
    flows = [client(f"198.51.100.{n}") for n in range(100)]
    before = [scheduler.schedule(flow) for flow in flows]
    servers[1].weight = 0
    scheduler.server_updated(servers[1])
    after = [scheduler.schedule(flow) for flow in flows]
    assert after == [None if server is servers[1] else server for server in before]
    servers[1].weight = 2
    scheduler.server_updated(servers[1])
    assert [scheduler.schedule(flow) for flow in flows] == before


def test_a_server_that_comes_with_weight_0_has_no_slots() -> None:
    servers = three(1, 1)
    scheduler = MaglevHashing(servers)
    servers.insert(0, Server("10.0.0.9", 0))
    scheduler.server_added(servers[0])
    assert all(scheduler.schedule(client(f"198.51.100.{n}")) for n in range(100))
    weight_before = servers[0].weight
    servers[0].weight = 5
    scheduler.server_updated(servers[0])
    seen = {scheduler.schedule(client(f"198.51.100.{n}")) for n in range(100)}
    assert servers[0] in seen
    servers[0].weight = weight_before
    scheduler.server_updated(servers[0])  # quiesced now: it keeps its slots
    seen = {scheduler.schedule(client(f"198.51.100.{n}")) for n in range(100)}
    assert None in seen


def test_a_server_that_returns_with_weight_0_has_lost_its_slots() -> None:
    servers = three(1, 1)
    scheduler = MaglevHashing(servers)
    gone = servers.pop(0)
    scheduler.server_removed(gone)
    gone.weight = gone.last_weight = 0
    servers.insert(0, gone)
    scheduler.server_added(gone)
    assert all(scheduler.schedule(client(f"198.51.100.{n}")) for n in range(100))


def test_fallback_spreads_a_servers_clients_over_the_others() -> None:
    servers = three()
    plain, falling = MaglevHashing(servers), MaglevHashing(servers, MaglevOptions(fallback=True))
    flows = [client(f"198.51.100.{n}") for n in range(200)]
    before = [plain.schedule(flow) for flow in flows]
    assert [falling.schedule(flow) for flow in flows] == before
    servers[0].overloaded = True
    mine = [flow for flow, server in zip(flows, before, strict=True) if server is servers[0]]
    assert {plain.schedule(flow) for flow in mine} == {None}
    assert {falling.schedule(flow) for flow in mine} == {servers[1], servers[2]}
    others = [flow for flow in flows if flow not in mine]
    assert [falling.schedule(flow) for flow in others] == [plain.schedule(flow) for flow in others]


@pytest.mark.parametrize("key", [None, SECRET])
def test_fallback_searches_as_the_reference_does(key: str | None) -> None:
    pool = Pool()
    for _ in range(12):
        pool.add()
    pool.schedulers = [
        MaglevHashing(pool.servers, MaglevOptions(fallback=True, key=key, slots=251)),
        Maglev(pool.servers, {1}, slots=251, key=key),
    ]
    for place in range(10):
        pool.overload(place)
    assert {pool.pick(client(f"198.51.100.{n}")) for n in range(20)} == {0, 1}


def test_fallback_may_be_out_of_luck() -> None:
    """One usable slot of 251, and 251 tries by hash: 1 in e misses, as in the kernel."""
    servers = [Server(f"10.0.1.{n}") for n in range(250)]
    servers.append(Server("10.0.2.1"))
    scheduler = MaglevHashing(servers, MaglevOptions(fallback=True, slots=251))
    for server in servers[:-1]:
        server.overloaded = True
    found = [scheduler.schedule(client(f"198.51.{n}.7")) for n in range(100)]
    assert set(found) == {None, servers[-1]}
    assert 20 < found.count(None) < 55


def test_fallback_does_not_search_where_nobody_may_be_used(monkeypatch: Any) -> None:
    servers = three(1, 1)
    scheduler = MaglevHashing(servers, MaglevOptions(fallback=True, slots=131071))
    assert scheduler.schedule(client("192.0.2.1"))
    for server in servers:
        server.overloaded = True
    hashed = []
    real = module.hsiphash
    monkeypatch.setattr(module, "hsiphash", lambda *words: hashed.append(words) or real(*words))
    assert scheduler.schedule(client("192.0.2.1")) is None
    assert len(hashed) == 1


def test_port_spreads_the_connections_of_one_client() -> None:
    def homes(port: bool) -> set[str | None]:
        flows = [client("192.0.2.1", port) for port in range(1024, 1054)]
        return set(chosen(three(), *flows, port=port))

    assert len(homes(port=False)) == 1
    assert len(homes(port=True)) == 3


def test_sums_carry_over_32_bits() -> None:
    """The kernel adds address and port in 32 bits."""
    over = [client("255.255.255.255", 1 + n) for n in range(8)]
    plain = [client("0.0.0.0", n) for n in range(8)]
    assert chosen(three(), *over, port=True) == chosen(three(), *plain, port=True)


def test_an_ipv6_client_and_an_ipv4_one_of_the_same_sum_share_a_server() -> None:
    v6 = [client(f"2001:db8::{n:x}") for n in range(8)]
    v4 = [client(str(ipaddress.ip_address(0x20010DB8 ^ n))) for n in range(8)]
    assert chosen(three(), *v6) == chosen(three(), *v4)


def test_of_ipv6_servers_in_an_ipv4_service_32_bits_count() -> None:
    """The kernel hashes everybody by the service's family: these two have one order of slots."""
    twins: list[Any] = [Server("2001:db8::1"), Server("2001:db8::2")]

    def slots_of_the_first(servers: list[Any], options: MaglevOptions, size: int) -> list[bool]:
        table = populate([(server, 1) for server in servers], options, size)
        return [server is servers[0] for server in table]

    for size, key, alike in ((4, None, True), (16, None, False), (4, SECRET, False)):
        options = MaglevOptions(key=key)
        one = slots_of_the_first(twins, options, size)
        assert (one == slots_of_the_first(twins[::-1], options, size)) is alike


def test_without_weights_there_is_no_table() -> None:
    assert table([]) == table(three(0, 0)) == []
    assert chosen([], client("192.0.2.1"), fallback=True) == [None]
    assert chosen(three(0), client("192.0.2.1"), fallback=True) == [None]


# --- options ---


def test_a_key_makes_another_table_and_another_hash() -> None:
    assert table(three(), key=SECRET) != table(three())
    assert table(three(), key=SECRET) != table(three(), key=SECRET[::-1])
    flows = [client(f"198.51.100.{n}") for n in range(64)]
    assert chosen(three(), *flows, key=SECRET) != chosen(three(), *flows)


def test_the_two_hashes_differ() -> None:
    for key in (None, SECRET):
        slot, skip = MaglevOptions(key=key).hashes()
        assert slot(bytes(4), 80, 0) != skip(bytes(4), 80, 0)


def test_a_key_hides_which_clients_share_a_server() -> None:
    """Those of one sum share the kernel's hash whatever its keys are; not so here."""
    sums = [client(f"192.0.2.{n}", 40000 - n) for n in range(50)]
    folds = [client(f"2001:db8::{n:x}:0:{n:x}") for n in range(50)]
    for flows in (sums, folds):
        assert len(set(chosen(three(), *flows, port=flows is sums))) == 1
        assert len(set(chosen(three(), *flows, port=flows is sums, key=SECRET))) == 3


@pytest.mark.parametrize("slots", SLOTS)
def test_every_size_is_a_prime_and_fills(slots: int) -> None:
    assert all(slots % divisor for divisor in range(2, int(slots**0.5) + 1))
    assert len(table(three(), slots=slots)) == slots


@pytest.mark.parametrize("slots", [0, 4096, 65536, -251])
def test_other_sizes_are_refused(slots: int) -> None:
    with pytest.raises(ValueError, match=f"slots {slots}; allowed: 251, 509, .* 131071"):
        MaglevOptions(slots=slots)


def test_a_short_key_is_refused_and_no_key_is_ever_shown() -> None:
    with pytest.raises(ValueError, match="key of 15 characters; allowed: 16 or more") as caught:
        MaglevOptions(key=SECRET[:15])
    assert SECRET[:15] not in str(caught.value)
    assert SECRET[:16] not in repr(MaglevOptions(key=SECRET[:16]))


def test_more_servers_than_slots_leave_the_table_as_it_was() -> None:
    servers: list[Any] = [Server(f"10.0.1.{n}") for n in range(251)]
    options = MaglevOptions(slots=251)
    scheduler = MaglevHashing(servers, options)
    flows = [client(f"198.51.100.{n}") for n in range(100)]
    for n in (1, 2):
        servers.insert(0, Server(f"10.0.2.{n}"))
        scheduler.server_added(servers[0])
    before = [scheduler.schedule(flow) for flow in flows]
    fresh = MaglevHashing(servers[2:], options)
    assert before == [fresh.schedule(flow) for flow in flows]
    gone: Any = before[0]
    gone.available = False
    servers.remove(gone)
    scheduler.server_removed(gone)
    after = [scheduler.schedule(flow) for flow in flows]
    assert after == [None if server is gone else server for server in before]
    scheduler.server_removed(servers.pop(0))
    fresh = MaglevHashing(servers, options)
    assert [scheduler.schedule(flow) for flow in flows] == [fresh.schedule(flow) for flow in flows]
    with pytest.raises(ValueError, match="252 servers; allowed: 251"):
        MaglevHashing([*servers, Server("10.0.3.1")], options)


def test_every_process_chooses_alike() -> None:
    """Whatever the seed of Python's own hash."""
    script = """
import json, sys
import lvskit
from lvskit_sched_hash.mh import MaglevHashing, MaglevOptions
from lvskit.testing.reference import Pool
pool = Pool(lambda servers, _: MaglevHashing(servers, MaglevOptions(key=sys.argv[1], port=True)))
for weight in (1, 2, 3):
    pool.add(weight)
flow = lvskit.Flow(lvskit.TCP, bytes([192, 0, 2, 1]), 0, bytes([10, 0, 0, 1]), 80)
print(json.dumps([pool.pick(flow._replace(cport=port)) for port in range(64)]))
"""
    answers = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", script, SECRET],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for seed in ("1", "2")
    ]
    assert answers[0] == answers[1]
    assert set(answers[0]) == {0, 1, 2}
