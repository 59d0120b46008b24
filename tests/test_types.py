"""The types of ine/, by mypy with the settings in setup.cfg: no contradiction, nothing unstated.

The first set shrinks to nothing, and then the second.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRADICTIONS_TO_DO: set[str] = set()
"""Parts of ine/ in which mypy still finds errors."""

UNTYPED_TO_DO: set[str] = set()
"""Parts of ine/ in which some function still does not state all its types."""

FINDING = re.compile(r"^ine/(\w+)(?:\.py|/\S+):\d+: error: .+\[([\w-]+)\]$", re.MULTILINE)


def mypy(*args):
    """What mypy prints about functions of which every one has to state its types."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--disallow-untyped-defs", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode < 2, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """(line, part of ine/, kind) of everything that mypy finds."""
    text = mypy("--cache-dir", tmp_path_factory.mktemp("mypy"))
    found = [(m[0], m[1], m[2]) for m in FINDING.finditer(text)]
    assert len(found) == text.count(": error: "), text
    return found


def test_types_do_not_contradict_each_other(findings):
    assert [
        line
        for line, part, kind in findings
        if kind != "no-untyped-def" and part not in CONTRADICTIONS_TO_DO
    ] == []


def test_every_function_states_its_types(findings):
    assert [
        line
        for line, part, kind in findings
        if kind == "no-untyped-def" and part not in UNTYPED_TO_DO
    ] == []


def test_wrong_and_missing_types_are_found(tmp_path):
    (tmp_path / "wrong.py").write_text("def f(x):\n    return x\n\n\ny: int = 'a'\n")
    text = mypy("--cache-dir", tmp_path / "cache", tmp_path / "wrong.py")
    assert "[no-untyped-def]" in text
    assert "[assignment]" in text
