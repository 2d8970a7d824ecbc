"""Make a scenario small: take steps away while kernel and lvskit still differ in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compare import Result, Scenario

Judge = Callable[[Sequence[Scenario]], Sequence[tuple[Result, Scenario]]]
"""Asks the kernel about scenarios and compares; in one batch, since each question is dear."""


def shrink(answer: Scenario, result: Result, judge: Judge) -> tuple[Result, Scenario]:
    """Return a smaller scenario that differs in the same field, answered, and its result.

    Args:
        answer: that differs.
        result: how.
        judge: who tells whether another one does.
    """
    best = (result, answer)
    last = len(answer["steps"]) - 2  # the recorder adds two steps of its own
    steps = [{"do": step["do"]} for step in answer["steps"][:last]]
    if 0 < result.step <= last:
        steps = steps[: result.step]
    size = max(len(steps) // 2, 1)
    while True:
        spans = [(start, min(start + size, len(steps))) for start in range(0, len(steps), size)]
        cut = _removable(answer, result.field, steps, spans, judge)
        if cut:
            steps, best = cut
        elif size == 1:
            return best
        else:
            size = max(size // 2, 1)


def _removable(
    answer: Scenario,
    field: str,
    steps: list[Scenario],
    spans: list[tuple[int, int]],
    judge: Judge,
) -> tuple[list[Scenario], tuple[Result, Scenario]] | None:
    """Return what is left without as many of `spans` as can go, or None where none can."""

    def tried(
        choices: list[list[tuple[int, int]]],
    ) -> list[tuple[list[Scenario], Result, Scenario]]:
        questions = []
        for number, gone in enumerate(choices):
            left = [
                step
                for n, step in enumerate(steps)
                if not any(start <= n < stop for start, stop in gone)
            ]
            head = {key: value for key, value in answer.items() if key != "steps"}
            questions.append({**head, "name": f"{answer['name']}~{number:03}", "steps": left})
        judged = judge([question for question in questions if question["steps"]])
        found = {result.name: (result, reply) for result, reply in judged}
        kept = []
        for question in questions:
            reply = found.get(question["name"])
            if reply and reply[0].kind == "differs" and reply[0].field == field:
                named = {**reply[1], "name": answer["name"]}
                kept.append((question["steps"], reply[0], named))
        return kept

    single = tried([[span] for span in spans])
    if not single:
        return None
    chosen = single[0]
    able = [span for span in spans if any(_lacks(left, steps, span) for left, _, _ in single)]
    if len(able) > 1:
        together = tried([able, able[: len(able) // 2], able[len(able) // 2 :]])
        chosen = min([*together, chosen], key=lambda each: len(each[0]))
    left, result, reply = chosen
    return left, (result, reply)


def _lacks(left: list[Scenario], steps: list[Scenario], span: tuple[int, int]) -> bool:
    """Whether `left` is `steps` without `span`."""
    return left == steps[: span[0]] + steps[span[1] :]
