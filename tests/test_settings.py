"""Settings: their names, what they may be, how people write them, and the page about them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvskit import ConfigError
from lvskit.config.settings import MEANINGS, assignments, format_assignments
from lvskit.settings import MODES, NAMES, Settings, allowed, check_settings, plain
from lvskit.testing.strategies import settings

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "settings.md").read_text()


def test_the_page_has_every_setting() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (-?\d+) \| (.*) \|$", PAGE, re.M)
    assert rows == [
        (name, str(getattr(Settings(), name)), meaning) for name, meaning in MEANINGS.items()
    ]
    assert tuple(MEANINGS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_limits(name: str) -> None:
    low, high = allowed(name)
    check_settings({name: low})
    check_settings({name: high})
    check_settings({name: None})
    for value in (low - 1, high + 1, True, 1.0, "1"):
        with pytest.raises(ConfigError, match=f"setting {name} = .*; allowed: {low} to {high}"):
            check_settings({name: value})


def test_limits_are_the_kernels() -> None:
    """int for the switches, 0 to 3 for defences; ipvsadm's 31 days for timeouts."""
    found = {name: allowed(name) for name in ("sloppy_tcp", "secure_tcp", "timeout_synack")}
    assert found == {
        "sloppy_tcp": (-(2**31), 2**31 - 1),
        "secure_tcp": (0, 3),
        "timeout_synack": (1, 2678400),
    }


def test_two_of_a_defence_is_one() -> None:
    changes = dict.fromkeys(NAMES, 2)
    assert plain(changes) == {name: 1 if name in MODES else 2 for name in NAMES}
    assert plain({"drop_entry": None, "drop_packet": 3}) == {"drop_entry": None, "drop_packet": 3}


@given(settings(NAMES))
def test_words_come_back(values: dict[str, int]) -> None:
    assert assignments(format_assignments(values)) == values


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sloppy_tcp", "'sloppy_tcp' changes no setting; allowed: NAME=VALUE, NAME=-"),
        ("slopy_tcp=1", "unknown setting 'slopy_tcp'; allowed: am_droprate, amemthresh, "),
        ("=1", "unknown setting ''"),
        ("drop_entry=4", "setting drop_entry = 4; allowed: 0 to 3"),
        ("drop_entry=", "setting drop_entry = ''; allowed: 0 to 3, or - to take it back"),
        ("drop_entry=1e0", "setting drop_entry = '1e0'; allowed: 0 to 3, or - to take it back"),
        ("drop_entry=1_0", "setting drop_entry = '1_0'"),
        ("drop_entry=٣", "setting drop_entry = '٣'"),
        ("sloppy_tcp=99999999999999999999", "setting sloppy_tcp = '99999999999999999999'"),
        ("sloppy_tcp=1 sloppy_tcp=-", "setting sloppy_tcp is given twice"),
    ],
)
def test_words_that_change_nothing(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        assignments(words.split())
    assert str(caught.value).startswith(message)


@given(st.text(max_size=8), st.text(max_size=8))
def test_any_words_at_all(name: str, value: str) -> None:
    try:
        changes = assignments([f"{name}={value}"])
    except ConfigError:
        return
    check_settings(changes)
