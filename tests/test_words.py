"""The prose of README, docs and docstrings: plain words, the field's own terms."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COINED = re.compile(
    r"\b(anew|begun|told|laid|is (?-i:none)|what there is|what is there)\b", re.IGNORECASE
)
"""Words for which the field, or plain English, has better ones."""

COINED_PART = re.compile(r"(^|_)(anew|begun|told|laid)(_|$)", re.IGNORECASE)
"""The same as parts of names."""

TO_DO: set[str] = set()
"""Pages that still have some."""

PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if str(page.relative_to(ROOT)) not in TO_DO
]
PARTS_TO_DO: set[str] = set()
"""Parts of ine/ whose docstrings still have some."""

MODULES = [
    path
    for path in sorted((ROOT / "ine").rglob("*.py"))
    if path.relative_to(ROOT / "ine").parts[0].removesuffix(".py") not in PARTS_TO_DO
]


def coined(text):
    """The coined words in a text, code left out."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [m[0] for m in COINED.finditer(re.sub(r"`[^`\n]*`", "", " ".join(text.split())))]


def docstrings(source):
    """The docstrings of a module's source, those below names and fields included."""
    return [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_says_it_in_plain_words(page):
    assert coined(page.read_text()) == []


def test_docstrings_say_it_in_plain_words():
    found = {
        str(path.relative_to(ROOT)): words
        for path in MODULES
        if (words := [w for text in docstrings(path.read_text()) for w in coined(text)])
    }
    assert found == {}


def coined_names(source):
    """The names in a source of which a coined word is a part, each once."""
    keys = ("id", "attr", "arg", "name")
    found = (getattr(node, key, None) for node in ast.walk(ast.parse(source)) for key in keys)
    return sorted({name for name in found if isinstance(name, str) and COINED_PART.search(name)})


@pytest.mark.parametrize("folder", ["ine", "tests"])
def test_names_say_it_in_plain_words(folder):
    found = {
        str(path.relative_to(ROOT)): names
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (names := coined_names(path.read_text()))
    }
    assert found == {}


def test_a_coined_name_is_found():
    source = "def test_it_is_begun_anew(told):\n    x.laid = plain = told\n"
    assert coined_names(source) == ["laid", "test_it_is_begun_anew", "told"]


def test_a_coined_word_is_found():
    assert coined("A run is begun\nanew; what is\nthere is `laid` down.") == [
        "begun",
        "anew",
        "what is there",
    ]
    source = '"""One."""\nX = 1\n"""Told below a name."""\ndef f():\n    """Anew."""\n'
    assert [w for text in docstrings(source) for w in coined(text)] == ["Told", "Anew"]
