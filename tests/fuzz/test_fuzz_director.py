"""The Director under everything that hypothesis thinks of; see `fuzzkit.world`."""

from __future__ import annotations

from fuzzkit.source import Drawn
from fuzzkit.world import play
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_whatever_happens(data: st.DataObject) -> None:
    play(Drawn(data, steps=40))


@given(st.binary(max_size=400))
def test_whatever_a_fuzzer_would_try(data: bytes) -> None:
    from targets import director

    director.check(data)
