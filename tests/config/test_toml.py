"""Configuration files: what is wrong with one is said with the file's name and the path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from lvskit import ConfigError, SchedulerBase, SchedulerSpec, hookimpl, load_plugins
from lvskit.config import toml
from lvskit.config.model import Config, DirectorConfig, Server, Service, Timeouts
from lvskit.plugins import Source

PLUGINS = load_plugins(strict=True)
SERVICE = '[[service]]\ntcp = "192.168.1.176:23"\n'
SERVER = '[[service.server]]\naddress = "192.168.1.11"\n'


def fault(text: str, *, plugins: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        toml.loads(text, "lvskit.toml", PLUGINS if plugins else None)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size = ", "Invalid value (at end of document)"),
        (SERVICE + SERVER + 'weight = "3"', "Expected `int`, got `str` - at "
         "`$.service[0].server[0].weight`"),
        (SERVICE + SERVER + "wieght = 3", "unknown field `wieght` - at `$.service[0].server[0]`"),
        ("[directr]", "Object contains unknown field `directr`"),
        (SERVICE + SERVER * 2, "server 192.168.1.11:23 is there already, as "
         "`$.service[0].server[0]` - at `$.service[0].server[1].address`"),
        (SERVICE + SERVER + '[[service.server]]\naddress = "192.168.1.11:99"',
         "192.168.1.11:23 is there already"),
        (SERVICE * 2, "service TCP 192.168.1.176:23 is there already, as `$.service[0]` - at "
         "`$.service[1]`"),
        (SERVICE + SERVER + "weight = -1", "weight -1; allowed: 0 to 2147483647 - at "
         "`$.service[0].server[0].weight`"),
        (SERVICE + SERVER + "upper_threshold = -1", "`$.service[0].server[0].upper_threshold`"),
        (SERVICE + SERVER + "lower_threshold = 3", "lower_threshold 3; allowed: 0 to 0 - at "
         "`$.service[0].server[0].lower_threshold`"),
        (SERVICE + '[[service.server]]\naddress = "host:80"', "'host:80' is no address"),
        (SERVICE + '[[service.server]]\naddress = "224.0.0.1"', "224.0.0.1 is not unicast"),
        (SERVICE + SERVER + 'method = "I P"', "method 'I P'; a plugin's name matches"),
        (SERVICE + 'scheduler = "WLC"', "scheduler 'WLC'; a plugin's name matches"),
        (SERVICE + "persistent = 2678401", "persistent 2678401; allowed: 0 to 2678400 - at "
         "`$.service[0].persistent`"),
        (SERVICE + "netmask = 33", "netmask 33; allowed: a prefix length of 1 to 32 - at "
         "`$.service[0].netmask`"),
        (SERVICE + 'netmask = "255"', "netmask '255'; allowed: a mask like 255.255.255.0"),
        (SERVICE + "one_packet = true", "one_packet schedules datagrams"),
        ('[[service]]\nsctp = "1.2.3.4:1"\none_packet = true', "one_packet schedules datagrams"),
        (SERVICE + "ipv6 = true", "ipv6 belongs to fwmark"),
        ('[[service]]\ntcp = "192.168.1.176"', "names no port; write host:port - at "
         "`$.service[0].tcp`"),
        ('[[service]]\ntcp = "192.168.1.176:nope"', "port 'nope'"),
        ('[[service]]\ntcp = "192.168.1.176:0"', "port 0 (every port) needs persistence"),
        ('[[service]]\nudp = "1.2.3.4:1"\nfwmark = 3', "exactly one of tcp, udp, sctp and fwmark; "
         "given: udp, fwmark - at `$.service[0]`"),
        ("[[service]]\nfwmark = 0", "fwmark 0; allowed: 1 to 4294967295 - at "
         "`$.service[0].fwmark`"),
        ("[director]\nsize = 0", "size 0; allowed: 1 to"),
        ('[director]\ndatapath = "?"', "datapath '?'"),
        ("[settings]\nslopy_tcp = 1", "unknown setting 'slopy_tcp'; allowed: am_droprate, "),
        ("[settings]\nslopy_tcp = 1", " - at `$.settings.slopy_tcp`"),
        ("[settings]\ndrop_entry = 4", "setting drop_entry = 4; allowed: 0 to 3 - at "
         "`$.settings.drop_entry`"),
        ("[settings]\nsloppy_tcp = true", "setting sloppy_tcp = True; allowed: -2147483648 to "
         "2147483647 - at `$.settings.sloppy_tcp`"),
        ("[settings]\ntimeout_udp = 0", "setting timeout_udp = 0; allowed: 1 to 2678400 - at "
         "`$.settings.timeout_udp`"),
        (SERVICE + "settings = { timeout_udp = '5' }", "setting timeout_udp = '5'; allowed: 1 to "
         "2678400 - at `$.service[0].settings.timeout_udp`"),
        ("[timeouts]\nudp = 300\n[settings]\ntimeout_udp = 300", "setting timeout_udp is there "
         "already, as `$.timeouts.udp` - at `$.settings.timeout_udp`"),
        ("[timeouts]\ntcp = -1", "timeout tcp -1; allowed: 0 to 2678400 - at `$.timeouts.tcp`"),
    ],
)  # fmt: skip
def test_faults(text: str, message: str) -> None:
    said = fault(text)
    assert said.startswith("lvskit.toml: ")
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SERVICE + 'scheduler = "nope"', "unknown scheduler 'nope'; installed: "),
        (SERVICE + 'flags = ["wlc-x"]', "unknown flag 'wlc-x' of scheduler wlc; allowed: flag-1"),
        (SERVICE + "options = { seed = 3 }", "unknown option 'seed'; options of wlc: none - at "
         "`$.service[0].options`"),
        (SERVICE + SERVER + 'method = "pigeon"', "unknown forwarder 'pigeon'; installed: "),
        (SERVICE + SERVER + "options = { x = 1 }", "unknown option 'x'"),
        (SERVICE + '[[service.server]]\naddress = "[2001:db8::1]:23"\nmethod = "droute"',
         "method 'droute' needs a server of its service's IP version, 4; [2001:db8::1]:23 is not - "
         "at `$.service[0].server[0].address`"),
        ('[[service]]\nfwmark = 3\nipv6 = true\n' + SERVER + 'method = "masq"',
         "method 'masq' needs a server of its service's IP version, 6; 192.168.1.11 is not"),
    ],
)  # fmt: skip
def test_faults_of_plugins(text: str, message: str) -> None:
    assert message in fault(text, plugins=True)
    toml.loads(text)


def test_any_ip_version_through_a_tunnel() -> None:
    toml.loads(SERVICE + '[[service.server]]\naddress = "[2001:db8::1]:23"', plugins=PLUGINS)


def test_flags_that_are_numbers() -> None:
    toml.loads(SERVICE + 'flags = ["flag-1"]', plugins=PLUGINS)


def test_every_fault_has_a_line() -> None:
    said = fault(SERVICE + SERVER + "weight = -1\n[timeouts]\nudp = -1")
    assert [line.rpartition(" ")[2] for line in said.splitlines()] == [
        "`$.timeouts.udp`",
        "`$.service[0].server[0].weight`",
    ]


def test_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        toml.read(tmp_path / "nope.toml")
    file = tmp_path / "lvskit.toml"
    file.write_text(SERVICE + SERVER)
    server = Server(address="192.168.1.11")
    assert toml.read(file) == Config(service=[Service(tcp="192.168.1.176:23", server=[server])])


def test_written_as_people_write() -> None:
    assert toml.dumps(Config()) == ""
    config = Config(
        director=DirectorConfig(datapath="memory", datapath_options={"a b": [1.5, True, {}]}),
        timeouts=Timeouts(udp=60),
        settings={"drop_entry": 3, "sloppy_tcp": 0},
        service=[
            Service(
                tcp="192.168.1.176:23",
                persistent=360,
                settings={"timeout_established": 60},
                server=[Server(address="192.168.1.11:23", weight=3)],
            ),
            Service(fwmark=7, options={"note": 'a "word"\n\x7f', "far": float("inf")}),
        ],
    )
    text = toml.dumps(config)
    assert text == (
        '[director]\ndatapath = "memory"\ndatapath_options = { "a b" = [1.5, true, {}] }\n\n'
        "[timeouts]\nudp = 60\n\n"
        "[settings]\ndrop_entry = 3\nsloppy_tcp = 0\n\n"
        '[[service]]\ntcp = "192.168.1.176:23"\npersistent = 360\n'
        "settings = { timeout_established = 60 }\n\n"
        '[[service.server]]\naddress = "192.168.1.11:23"\nweight = 3\n\n'
        '[[service]]\nfwmark = 7\noptions = { note = "a \\"word\\"\\n\\u007f", far = +inf }\n'
    )
    assert toml.loads(text) == config
    assert "x = nan" in toml.dumps(Config(service=[Service(fwmark=1, options={"x": float("nan")})]))


def test_what_toml_cannot_hold() -> None:
    config = Config(service=[Service(fwmark=1, options={"x": None})])
    with pytest.raises(ConfigError, match=r"None cannot be written as TOML - at .*options\.x"):
        toml.dumps(config)


@dataclass(frozen=True)
class Choices:
    strict: bool = False
    seed: int = 0


class Chooser:
    @hookimpl
    def lvskit_register_schedulers(self) -> list[SchedulerSpec]:
        return [
            SchedulerSpec(
                name="chooser",
                summary="",
                factory=SchedulerBase,
                options=Choices,
                flags=("strict",),
            )
        ]


def test_flags_that_have_names() -> None:
    plugins = load_plugins(strict=True)
    plugins.add(Chooser(), Source("chooser", "chooser", "0"))
    text = SERVICE + 'scheduler = "chooser"\nflags = ["chooser-strict"]\n'
    toml.loads(text + "options = { seed = 3 }", plugins=plugins)
    with pytest.raises(ConfigError, match="unknown option 'sed'; options of chooser: strict, seed"):
        toml.loads(text + "options = { sed = 3 }", plugins=plugins)
