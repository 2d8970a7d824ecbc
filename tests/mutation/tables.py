"""Changes to a module that works when it is imported, where mutmut's would come too late.

Each word of its tables is changed in turn to another of the same table, each number to the next,
each operator to its opposite; the tests run in a fork that imports what comes of it.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import resource
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import hypothesis  # noqa: F401  # once, for all forks; and scapy
import pytest
import scapy.layers.all  # noqa: F401

_TESTS = [f"tests/core/test_{name}.py" for name in ("states", "secure_tcp", "sctp", "tuning")]
_SECONDS = 60
_OPPOSITE = {"==": "!=", "&": "|", "and": "or", "not": "", "-": "+"}
_SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT}


def changes(source: str) -> Iterator[tuple[str, str]]:
    """Yield what is changed, and the module's text with that change."""
    lines = source.splitlines(keepends=True)
    for statement in _statements(source):
        if statement[0].type == tokenize.STRING:
            continue  # a docstring
        words = sorted({w for t in statement if t.type == tokenize.STRING for w in _words(t)})
        for token in statement:
            for start, end, new in _others(token, words):
                row, column = token.start
                line = lines[row - 1]
                old = token.string[start:end]
                head, tail = line[: column + start], line[column + end :]
                text = "".join((*lines[: row - 1], head, new, tail, *lines[row:]))
                yield f"{row}:{column + start} {old} -> {new}", text


def _statements(source: str) -> Iterator[list[tokenize.TokenInfo]]:
    """Yield the tokens of each logical line, comments and blanks left out."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kept = (token for token in tokens if token.type not in _SKIPPED)
    for end, group in itertools.groupby(kept, lambda token: token.type == tokenize.NEWLINE):
        if not end:
            yield list(group)


def _words(token: tokenize.TokenInfo) -> list[str]:
    return re.findall(r"[\w-]+", token.string)


def _others(token: tokenize.TokenInfo, words: list[str]) -> Iterator[tuple[int, int, str]]:
    """Yield which part of a token becomes what."""
    if token.type == tokenize.NUMBER:
        yield 0, len(token.string), str(int(token.string, 0) + 1)
    elif token.type == tokenize.STRING:
        for word in re.finditer(r"[\w-]+", token.string):
            following = words[(words.index(word[0]) + 1) % len(words)]
            yield *word.span(), following if len(words) > 1 else word[0] * 2
    elif token.string in _OPPOSITE:
        yield 0, len(token.string), _OPPOSITE[token.string]


def main() -> None:
    """Change the file named first, run its tests for each change, and write the file named second.

    What is written: the exit status of the tests by change.
    """
    file, results = map(Path, sys.argv[1:])
    module = ".".join(file.with_suffix("").parts)
    source, statuses = file.read_text(), {}
    sys.path.insert(0, "")
    if _test():
        sys.exit("the tests of the tables fail without any change")
    for number, (change, text) in enumerate(changes(source)):
        file.write_text(text)
        os.utime(file, (number, number))  # or what is compiled would be taken for what is here
        statuses[f"{module} {change}"] = _test()
    file.write_text(source)
    results.write_text(json.dumps(statuses))


def _test() -> int:
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # many cannot even be imported
        unwritten = "ignore::pytest.PytestAssertRewriteWarning"  # hypothesis is imported already
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-W", unwritten, *_TESTS])
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
