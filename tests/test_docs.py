import re
import subprocess
from pathlib import Path

import pytest

from ine.cli import COMMANDS
from ine.cli.reference import cli_reference

ROOT = Path(__file__).parent.parent
PAGES = [
    *ROOT.glob("*.md"),
    *(p for d in ("docs", "recipes", "embeddings", "ine") for p in (ROOT / d).rglob("*.md")),
]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


def prose(page):
    """The text of a page without code, where brackets mean something else."""
    return re.sub(r"`[^`\n]*`", "`code`", FENCE.sub("", page.read_text()))


def anchors(page):
    """The anchors that a page's headings get, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def broken_links(page):
    """Relative links of a page that lead nowhere."""
    out = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            out.append(link)
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("# One Thing\n[a](b.md) [c](#one-thing) [d](#two) [e](https://x.y/)\n")
    assert broken_links(page) == ["b.md", "#two"]


def test_every_page_of_docs_is_reached_from_the_index():
    linked = {link.partition("#")[0] for link in LINK.findall(prose(ROOT / "docs" / "index.md"))}
    pages = {p.name for p in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= linked


def test_the_command_line_reference_is_fresh():
    if (ROOT / "docs" / "cli.md").read_text() != cli_reference():
        pytest.fail("docs/cli.md is stale; run: python -m ine.cli.reference > docs/cli.md")


def test_every_command_is_documented():
    text = (ROOT / "docs" / "cli.md").read_text()
    for name in COMMANDS:
        assert f"\n## ine {name}\n" in text


def test_every_exit_code_is_documented():
    from ine import errors

    text = (ROOT / "docs" / "cli.md").read_text()
    for kind in vars(errors).values():
        if isinstance(kind, type):
            assert f"\n| {kind.exit_code} | " in text


def readme_commands():
    """The lines of the README's fenced blocks."""
    blocks = FENCE.findall((ROOT / "README.md").read_text())
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()[1:-1]]


def test_ci_runs_exactly_the_test_command_of_the_readme():
    last = (ROOT / ".ci" / "run").read_text().rstrip().splitlines()[-1]
    assert last in readme_commands()
    assert last.endswith("python -m pytest")


def test_the_ci_script_is_sound_bash_and_may_be_executed():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)


def test_the_readme_shows_the_demo():
    assert any(re.search(r"\bine demo\b", line) for line in readme_commands())


def test_the_changelog_knows_this_version():
    from ine import __version__

    assert f"\n## {__version__}" in (ROOT / "docs" / "changelog.md").read_text()


def test_the_architecture_page_names_every_part():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "ine").iterdir():
        if path.name == "__init__.py" or (path.suffix != ".py" and not any(path.glob("*.py"))):
            continue
        name = path.stem if path.suffix else f"{path.name}/"
        assert f"`{name}`" in text, name
