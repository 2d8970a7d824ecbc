"""Processes by number and start time."""

from __future__ import annotations

import os
import signal
import subprocess

from lvskit.hostsetup.process import Process, start_time


def test_a_process_is_its_number_and_its_start():
    with subprocess.Popen(["sleep", "100"]) as child:
        process = Process.of(child.pid)
        assert process.running
        assert not Process(child.pid, Process.of(os.getpid()).started + "0").running
        assert not process.wait(0.05)
        assert process.end()
        assert child.wait() == -signal.SIGTERM
        assert not process.running
        assert not process.signal(signal.SIGTERM)
        assert not process.end()


def test_a_process_that_only_waits_to_be_collected_has_ended():
    with subprocess.Popen(["true"]) as child:
        process = Process.of(child.pid)
        assert process.wait(5)
        assert start_time(child.pid) is None


def test_who_does_not_listen_is_made_to():
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert Process.of(child.pid).end(patience_s=0.1)
        assert child.wait() == -signal.SIGKILL


def test_a_strange_name_does_not_confuse(tmp_path):
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "100"]) as child:
        assert start_time(child.pid) == start_time(child.pid)
        assert Process.of(child.pid).running
        child.kill()
