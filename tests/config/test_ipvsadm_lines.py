"""Rules to configurations, and what is said about lines that are none."""

from __future__ import annotations

from typing import Any

import pytest

from lvskit import ConfigError
from lvskit.config.ipvsadm.labels import Labels
from lvskit.config.ipvsadm.rules import Rules
from lvskit.config.ipvsadm.words import BadWord, Option, Takes, Words
from lvskit.config.ipvsadm_lines import from_lines, split_line, to_lines
from lvskit.config.model import Config, Server, Service, Timeouts
from lvskit.config.names import Names

NAMES = Names({"192.168.1.14": "rs14.example rs14"})


def test_from_lines() -> None:
    config = from_lines(
        [
            "ipvsadm --set 600 0 60",
            "",
            "-A -t 192.168.1.176:telnet -s wlc -p",
            "-a -t 192.168.1.176:telnet -r rs14 -i -w 3 -x 9 -y 2",
            "-A -f 3 -6 -s rr -M 64 -o -b flag-2",
            "-a -f 3 -6 -r [2001:db8::1]:80 --forward pigeon --option depth=3",
        ],
        NAMES,
    )
    assert config == Config(
        timeouts=Timeouts(tcp=600, udp=60),
        service=[
            Service(
                tcp="192.168.1.176:23",
                persistent=360,
                server=[
                    Server(
                        address="192.168.1.14:23", weight=3, upper_threshold=9, lower_threshold=2
                    )
                ],
            ),
            Service(
                fwmark=3,
                ipv6=True,
                scheduler="rr",
                netmask=64,
                one_packet=True,
                flags=["flag-2"],
                server=[Server(address="[2001:db8::1]:80", method="pigeon", options={"depth": 3})],
            ),
        ],
    )


def test_to_lines_keeps_the_order() -> None:
    servers = [Server(address=f"10.0.0.{n}", method=m) for n, m in ((9, "droute"), (1, "masq"))]
    config = Config(
        service=[
            Service(udp="[2001:db8::1]:53", one_packet=True, netmask=64, server=servers),
            Service(fwmark=4294967295),
            Service(sctp="10.0.0.1:2905", server=servers[:1]),
        ]
    )
    assert to_lines(config) == [
        "-A -u [2001:db8::1]:53 -s wlc -M 64 -o",
        "-a -u [2001:db8::1]:53 -r 10.0.0.9:53 -g -w 1",
        "-a -u [2001:db8::1]:53 -r 10.0.0.1:53 -m -w 1",
        "-A -f 4294967295 -s wlc",
        "-A --sctp-service 10.0.0.1:2905 -s wlc",
        "-a --sctp-service 10.0.0.1:2905 -r 10.0.0.9:2905 -g -w 1",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("# a comment", "rules:2: Try `ipvsadm -h'"),
        ("-A -t 10.0.0.1:81 -Q", "rules:2: -Q: unknown option"),
        ("-A -t 10.0.0.1:80", "rules:2: service TCP 10.0.0.1:80 is there already"),
        ("-a -t 10.0.0.1:81 -r 10.0.0.2 -i", "no service TCP 10.0.0.1:81; -A comes first"),
        ("-D -t 10.0.0.1:80", "'delete-service' makes no rule; allowed: -A, -a, --set"),
        ("-A -t 10.0.0.1:81 --pe sip", "no plugin provides the persistence engine 'sip'"),
        (
            "-a -t 10.0.0.1:80 -r 10.0.0.2 -i --tun-type gre --option type=ipip",
            "option `type' specified twice",
        ),
        (
            "--set sloppy_tcp=x",
            "setting sloppy_tcp = 'x'; allowed: -2147483648 to 2147483647, or -",
        ),
        ("--set -t 10.0.0.1:81 sloppy_tcp=1", "no service TCP 10.0.0.1:81; -A comes first"),
        (
            "--set -t 10.0.0.1:80 -w 3 sloppy_tcp=1",
            "Illegal 'weight' option with the 'set' command",
        ),
        ("-A -t nope:80", "illegal virtual server address[:port] specified: -A -t nope:80"),
    ],
)
def test_faults(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_lines(["-A -t 10.0.0.1:80", line], NAMES)
    assert message in str(caught.value)


TUNNELS = [
    ("-i", {}, "-i -w 1 --tun-type ipip"),
    ("-i --tun-type ipip", {}, "-i -w 1 --tun-type ipip"),
    ("-i --tun-type gre", {"type": "gre"}, "-i -w 1 --tun-type gre --tun-nocsum"),
    ("-i --tun-type gre --tun-nocsum", {"type": "gre"}, "-i -w 1 --tun-type gre --tun-nocsum"),
    (
        "-i --tun-csum --tun-type gre",
        {"type": "gre", "checksum": "csum"},
        "-i -w 1 --tun-type gre --tun-csum",
    ),
    (
        "-i --tun-type gue --tun-port 6080",
        {"type": "gue", "port": 6080},
        "-i -w 1 --tun-type gue --tun-port 6080 --tun-nocsum",
    ),
    (
        "-i --tun-port 65535 --tun-remcsum --tun-type gue --option hue=3",
        {"type": "gue", "port": 65535, "checksum": "remcsum", "hue": 3},
        "-i -w 1 --tun-type gue --tun-port 65535 --tun-remcsum --option hue=3",
    ),
]


@pytest.mark.parametrize(("words", "options", "saved"), TUNNELS)
def test_tunnels(words: str, options: dict[str, Any], saved: str) -> None:
    """In ipvsadm's words, of which the lossless ones leave out what is unless told."""
    start = "-a -t 10.0.0.1:80 -r 10.0.0.2"
    config = from_lines(["-A -t 10.0.0.1:80", f"{start} {words}"], NAMES)
    (service,) = config.service
    assert service.server[0].options == options
    assert from_lines(to_lines(config), NAMES) == config
    line = Rules(Labels()).lines(service, service.server)[1]
    assert line == f"{start}:80 {saved}"
    assert from_lines(["-A -t 10.0.0.1:80", line], NAMES) == config
    lossless = to_lines(config)[1].removeprefix(f"{start}:80 ")
    assert lossless == saved.replace(" --tun-nocsum", "").replace(" --tun-type ipip", "")


@pytest.mark.parametrize(
    "options",
    [
        {"type": "gue"},
        {"type": "gue", "port": 0},
        {"type": "gue", "port": 65536},
        {"type": "gue", "port": True},
        {"type": "gue", "port": 1, "checksum": "none"},
        {"type": "gre", "port": 1},
        {"type": "gre", "checksum": "remcsum"},
        {"type": "gre", "checksum": ["csum"]},
        {"type": "gre", "checksum": "nocsum"},
        {"type": "ipip"},
        {"type": ["gre"]},
        {"port": 6080},
        {"checksum": "csum"},
    ],
)
def test_tunnels_that_ipvsadm_has_no_words_for(options: dict[str, Any]) -> None:
    """They are kept; the plugin says what is wrong with them."""
    server = Server(address="10.0.0.2:80", options=options)
    config = Config(service=[Service(tcp="10.0.0.1:80", server=[server])])
    assert from_lines(to_lines(config), NAMES) == config


def test_the_options_of_another_method_are_its_own() -> None:
    options = {"type": "gue", "port": 6080}
    server = Server(address="10.0.0.2:80", method="pigeon", options=options)
    config = Config(service=[Service(tcp="10.0.0.1:80", server=[server])])
    assert "--forward pigeon -w 1 --option type=gue --option port=6080" in to_lines(config)[1]
    assert from_lines(to_lines(config), NAMES) == config


def test_server_twice() -> None:
    lines = ["-A -t 10.0.0.1:80", *["-a -t 10.0.0.1:80 -r 10.0.0.2 -i"] * 2]
    with pytest.raises(ConfigError, match=r"x:3: server 10\.0\.0\.2:80 is in TCP 10\.0\.0\.1:80"):
        from_lines(lines, NAMES, "x")


def test_split_line() -> None:
    assert split_line("\t ipvsadm  ipvsadm -L\r\n") == ["-L"]
    assert split_line("lvsadm -L", "lvsadm") == ["-L"]
    assert split_line("lvsadm -L") == ["lvsadm", "-L"]
    assert split_line("\0x -L") == ["", "-L"]
    assert split_line("  \n") == []


OPTIONS = [
    Option("flag", "f"),
    Option("value", "v", Takes.VALUE),
    Option("maybe", "m", Takes.PERHAPS),
]


def read(line: str) -> list[tuple[str, str | None]]:
    words = Words(line.split(), OPTIONS)
    found = []
    while (taken := words.next()) is not None:
        found.append((taken[0].name, taken[1]))
    return found + [("", word) for word in words.others]


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("-fv5 x", [("flag", None), ("value", "5"), ("", "x")]),
        ("-fv=5 -v -f", [("flag", None), ("value", "5"), ("value", "-f")]),
        ("--value=a=b --value --", [("value", "a=b"), ("value", "--")]),
        ("-m -f -m 3 --maybe=4 -m", [("maybe", None), ("flag", None), ("maybe", "3"),
         ("maybe", "4"), ("maybe", None)]),
        ("x -- -f - y", [("", "x"), ("", "-f"), ("", "-"), ("", "y")]),
    ],
)  # fmt: skip
def test_words(line: str, options: list[tuple[str, str | None]]) -> None:
    assert read(line) == options


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-fx", "unknown option"),
        ("--flags", "unknown option"),
        ("-v", "missing argument"),
        ("--value", "missing argument"),
        ("--flag=1", "option does not take an argument"),
        ("-f=1", "option does not take an argument"),
    ],
)
def test_bad_words(line: str, message: str) -> None:
    with pytest.raises(BadWord, match=message):
        read(line)


def test_settings_are_lines_of_set() -> None:
    config = Config(
        timeouts=Timeouts(tcp_fin=30),
        settings={"sloppy_tcp": 1, "am_droprate": -1},
        service=[Service(tcp="10.0.0.1:80", settings={"timeout_udp": 5, "drop_entry": 0})],
    )
    lines = to_lines(config)
    assert lines == [
        "--set 0 30 0",
        "--set am_droprate=-1 sloppy_tcp=1",
        "-A -t 10.0.0.1:80 -s wlc",
        "--set -t 10.0.0.1:80 drop_entry=0 timeout_udp=5",
    ]
    assert from_lines(lines) == config


def test_one_value_has_one_place() -> None:
    """However the lines say the director's timeouts, the last one holds, and it is said once."""
    lines = ["--set 600 0 0", "--set timeout_established=700 timeout_udp=9", "--set 0 0 8"]
    config = from_lines(lines)
    assert config == Config(timeouts=Timeouts(tcp=700, udp=8))
    assert to_lines(config) == ["--set 700 0 8"]
    by_name = Config(settings={"timeout_established": 700, "timeout_udp": 8})
    assert to_lines(by_name) == to_lines(config)


def test_lines_take_values_back() -> None:
    lines = ["-A -f 3", "--set sloppy_tcp=1", "--set -f 3 sloppy_tcp=0", "--set sloppy_tcp=-"]
    assert from_lines(lines) == Config(service=[Service(fwmark=3, settings={"sloppy_tcp": 0})])
    assert from_lines([*lines, "--set -f 3 sloppy_tcp=-"]) == Config(service=[Service(fwmark=3)])
