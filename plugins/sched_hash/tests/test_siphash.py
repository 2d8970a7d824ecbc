"""SipHash against its authors' description, Linux's own test, and the one inside Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lvskit_sched_hash.siphash import hsiphash

from lvskit.testing.reference.hashes import siphash

WORDS = st.integers(0, 2**64 - 1)


def test_the_vector_of_the_kernels_own_test() -> None:
    """lib/test_siphash.c: key bytes 0 to 15, message bytes 0 to 3, on a 64-bit machine."""
    assert hsiphash(0x03020100, (0x0706050403020100, 0x0F0E0D0C0B0A0908)) == 0x88D38328


def test_the_reference_has_the_vector_of_the_paper() -> None:
    """SipHash-2-4, appendix A: key bytes 0 to 15, message bytes 0 to 14."""
    assert siphash(2, 4, bytes(range(16)), bytes(range(15))) == 0xA129CA6149BE45E5


@given(st.integers(0, 2**32 - 1), WORDS, WORDS)
def test_it_is_siphash_1_3_cut_to_32_bits(value: int, k0: int, k1: int) -> None:
    key = k0.to_bytes(8, "little") + k1.to_bytes(8, "little")
    whole = siphash(1, 3, key, value.to_bytes(4, "little"))
    assert hsiphash(value, (k0, k1)) == whole & 0xFFFFFFFF


@pytest.mark.skipif(sys.hash_info.algorithm != "siphash13", reason="this Python hashes otherwise")
def test_it_is_the_hash_of_a_python_without_a_seed() -> None:
    values = [0, 1, 0xFFFFFFFF, *(n * 2654435761 % 2**32 for n in range(50))]
    script = "import json, sys; print([hash(bytes.fromhex(v)) for v in json.load(sys.stdin)])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([value.to_bytes(4, "little").hex() for value in values]),
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [whole & 0xFFFFFFFF for whole in json.loads(done.stdout)]
    assert [hsiphash(value, (0, 0)) for value in values] == expected
