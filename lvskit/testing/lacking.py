"""What recordings ask of the kernel that a director has no part of, taken out step by step.

The privileges of the ipvsadm process itself, the persistence engine `sip` and the synchronization
daemon. A command is given without the engine and then compared; steps about the others are left
out, and everything else of the scenario is compared.
"""

from __future__ import annotations

from lvskit.testing.wire import Tree

_ENGINE = "--pe"
_STATE = frozenset({"services", "conns", "conn_count"})
_DAEMON = frozenset({"--start-daemon", "--stop-daemon", "--daemon"})


def without(scenario: Tree) -> tuple[Tree, list[str]]:
    """Return `scenario` without what is lacking, and a line for each step that it is less by."""
    steps, left_out, runs = [], [], False
    for step in scenario["steps"]:
        do, expect = step["do"], step["expect"]
        argv = do.get("argv", [])
        reason = ""
        if "uid" in do:
            reason = "privileges of the ipvsadm process itself"
        elif _DAEMON & set(argv):
            starts, worked = "--start-daemon" in argv, expect["rc"] == 0
            if runs or (starts and (worked or "No such device" in expect["stderr"])):
                reason = "connection synchronization"
            runs = (runs or (starts and worked)) and not ("--stop-daemon" in argv and worked)
        if reason:
            left_out.append(f"step {step['n']}: {reason}")
            do, expect = {"op": "sleep"}, {k: v for k, v in expect.items() if k in _STATE}
        elif expect.get("rc") == 0 and _ENGINE in argv:
            left_out.append(f"step {step['n']}: the persistence engine sip")
            at = argv.index(_ENGINE)
            do = {**do, "argv": argv[:at] + argv[at + 2 :]}
        if "stdout" in expect:
            plain = expect["stdout"].replace(" --pe sip", "").replace(" pe sip", "")
            expect = {**expect, "stdout": plain}
        steps.append({**step, "do": do, "expect": expect})
    return {**scenario, "steps": steps}, left_out
