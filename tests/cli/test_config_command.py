"""``lvskit config``, as a process sees it."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest

from lvskit.cli import config

TOML = '[[service]]\ntcp = "192.168.1.176:23"\n\n[[service.server]]\naddress = "192.168.1.11:23"\n'
LINES = "-A -t 192.168.1.176:23 -s wlc\n-a -t 192.168.1.176:23 -r 192.168.1.11:23 -i -w 1\n"


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    config.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["config", *words])
    return arguments.func(arguments)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lvskit.toml"


def test_check(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(TOML)
    assert run("check", str(file)) == 0
    assert capsys.readouterr() == ("", "")
    file.write_text(TOML + "weight = -1\n")
    assert run("check", str(file)) == 1
    said = f"{file}: weight -1; allowed: 0 to 2147483647 - at `$.service[0].server[0].weight`\n"
    assert capsys.readouterr().err == said


def test_check_against_plugins(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in (TOML + 'method = "pigeon"\n', "-A -t 10.0.0.1:80 -s nope\n"):
        file.write_text(text)
        assert run("check", str(file)) == 1
        assert "installed:" in capsys.readouterr().err
        assert run("check", "--no-plugins", str(file)) == 0


def test_check_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "/nonexistent/x.toml") == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(("source", "target"), [(TOML, LINES), (LINES, TOML)])
def test_convert(file: Path, capsys: pytest.CaptureFixture[str], source: str, target: str) -> None:
    file.write_text(source)
    assert run("convert", str(file)) == 0
    assert capsys.readouterr() == (target, "")


def test_convert_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(LINES))
    assert run("convert", "--from", "ipvsadm", "--to", "ipvsadm") == 0
    assert capsys.readouterr().out == LINES
    monkeypatch.setattr("sys.stdin", io.StringIO(LINES + "-A nonsense\n"))
    assert run("convert") == 1
    assert capsys.readouterr().err.startswith("standard input:3: unexpected argument nonsense")


def test_convert_says_what_it_leaves_out(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("[director]\nsize = 4096\n" + TOML)
    assert run("convert", str(file)) == 0
    out, err = capsys.readouterr()
    assert out == LINES
    assert "no place for [director]" in err
    file.write_text("")
    assert run("convert", str(file)) == 0
