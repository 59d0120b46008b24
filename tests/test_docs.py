import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ine.cli import COMMANDS
from ine.cli.reference import cli_reference
from ine.files import sha256_of
from ine.report.results_page import MARK, results_page
from ine.report.values import Report

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


def not_reached(page):
    """Pages of tables beside a page of results that it does not link."""
    linked = {link.partition("#")[0] for link in LINK.findall(prose(page))}
    return {f"results/{p.name}" for p in (page.parent / "results").glob("*.md")} - linked


def test_every_table_of_results_is_reached_from_the_page_of_results():
    assert not_reached(ROOT / "docs" / "results.md") == set()


def test_a_table_that_is_not_reached_is_found(tmp_path):
    page = tmp_path / "results.md"
    page.write_text("[a](results/a.md) `results/b.md`\n")
    (tmp_path / "results").mkdir()
    for name in ("a.md", "b.md"):
        (tmp_path / "results" / name).write_text("# A table\n")
    assert not_reached(page) == {"results/b.md"}


def by_hand(folder):
    """Pages of a folder that are not as `ine report --markdown` wrote them."""
    found = []
    for page in sorted(folder.glob("*.md")):
        head, _, rest = page.read_text().partition("\n\n")
        if head != f"{MARK}{sha256_of(rest.encode())[:16]} -->":
            found.append(page.name)
    return found


def test_pages_of_results_are_as_ine_report_wrote_them():
    assert by_hand(ROOT / "docs" / "results") == []


def test_a_page_of_results_that_was_edited_or_written_by_hand_is_found(tmp_path):
    page = results_page([Report(title="a", lead="", sections=[], provenance={})])
    for name, text in (("a", page), ("b", page + "more\n"), ("c", "# By hand\n\nmore\n")):
        (tmp_path / f"{name}.md").write_text(text)
    assert by_hand(tmp_path) == ["b.md", "c.md"]


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


# ------------------------------------------------------------------------ docs/extending.md


@pytest.fixture(scope="module")
def examples():
    """What the code of docs/extending.md defines."""
    page = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    # In a module of its own, as dataclasses look theirs up.
    module = types.ModuleType("extending")
    sys.modules["extending"] = module
    for block in blocks:
        exec(compile(block, "docs/extending.md", "exec"), module.__dict__)
    yield module
    del sys.modules["extending"]


def test_the_example_of_a_layout_works(examples, tiny_parts, tmp_path, monkeypatch):
    from ine.errors import CheckpointError
    from ine.weights import layouts
    from ine.weights.apply import apply_weights

    file = tmp_path / "erased.pt"
    with pytest.raises(CheckpointError, match="keys are like erased, epoch"):
        examples.check_erased(tiny_parts, file, apply_weights)
    monkeypatch.setattr(layouts, "LAYOUTS", (examples.ERASED, *layouts.LAYOUTS))
    examples.check_erased(tiny_parts, file, apply_weights)


def test_the_example_of_a_family_works(examples, monkeypatch):
    import torch

    from ine import families
    from ine.embeddings.embedding import header_of, new_embedding

    embedding = new_embedding(torch.zeros(1, 1536), "fire-neg", "fire")
    assert embedding.family == "width-1536"
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, examples.WIDE))
    assert embedding.family == "wide"
    header = header_of(embedding)
    assert header["modelspec.architecture"] == "wide-diffusion-v1/textual-inversion"
    assert header["modelspec.resolution"] == "640x640"


def test_the_example_of_a_method_works(examples, tiny_parts, monkeypatch):
    import torch

    from ine.embeddings.embedding import new_embedding
    from ine.guidance.additive import Additive
    from ine.guidance.gates import Gated, Window
    from ine.guidance.negative import Negative
    from ine.guidance.table import METHODS, build_guidance
    from ine.sampling import SamplerSettings, sample_latents

    def sample(guidance):
        return sample_latents(tiny_parts, ["a dog"], [0], guidance, SamplerSettings(steps=3))[0]

    vectors = torch.randn((2, 32), generator=torch.Generator().manual_seed(0))
    negative = Negative("", (new_embedding(3 * vectors, "fire-neg", "fire"),))
    found = sample(examples.Halved(negative))
    torch.testing.assert_close(found, sample(Additive(negative, 0.5)), atol=1e-4, rtol=0)
    assert not torch.allclose(found, sample(Additive(negative, 0.0)), atol=1e-3)
    gated = sample(Gated(examples.Halved(negative), Window(0.0, 0.5)))
    assert not torch.equal(gated, sample(examples.Halved(negative)))
    monkeypatch.setitem(METHODS, "halved", examples.HALVED)
    built = build_guidance("halved", negative, settings={"strength": 2.0})
    assert built == examples.Halved(negative, 2.0)
    assert built.scaled(2.0).strength == 4.0
    assert examples.HALVED.has_strength
