"""`ine report`: the page again, two runs compared; and `ine evaluate` writes it."""

import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from made_up_grid import flagged_of, make_run, write_grid
from test_report import a_report

from ine.evaluation.run_folder import read_run
from ine.evaluation.stats import Estimate
from ine.files import sha256_of
from ine.report import diff as grid_diff
from ine.report.diff import APART, PAIRED, apart, diff_runs
from ine.report.page import write_report
from ine.report.results_page import MARK
from ine.report.text import figure_text


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_folder):
    """A folder with run `a`, and `make(name, *pairs, flagged=...)` for changed ones."""
    folder = tmp_path_factory.mktemp("runs")

    def make(name, *pairs, **options):
        path = write_grid(folder, tiny_folder, "[1, 3, 6]", "[3, 6]", *pairs, name=f"{name}.yaml")
        make_run(path, folder / name, store=folder / "store", **options)
        return folder / name

    make("a")
    return folder, make


@pytest.fixture
def run_a(runs, tmp_path):
    return shutil.copytree(runs[0] / "a", tmp_path / "a")


def test_the_page_is_written_again(run_ine, runs, run_a):
    done = run_ine("report", run_a, "--store", runs[0] / "store")
    assert done.exit_code == 0, done.output
    page = run_a / "report.html"
    assert done.stdout.strip() == str(page)
    first = page.read_bytes()
    page.unlink()
    assert run_ine("report", "show", run_a, "--store", runs[0] / "store").exit_code == 0
    assert page.read_bytes() == first
    assert b"data:image/png" in first
    found = run_ine("report", "--json", run_a)
    assert json.loads(found.stdout) == json.loads((run_a / "report.json").read_text())
    assert json.loads(found.stdout)["title"] == "ine evaluate: made-up"


def test_options_reach_the_page(run_ine, runs, run_a):
    store = ("--store", runs[0] / "store")
    assert run_ine("report", run_a, *store, "--columns", 2).exit_code == 0
    few = (run_a / "report.html").read_text()
    assert few.count('type="checkbox"') > 0
    assert run_ine("report", run_a, *store, "--columns", 6).exit_code == 0
    assert (run_a / "report.html").read_text().count("<img") == 3 * few.count("<img")
    assert run_ine("report", run_a, *store, "--flagged", "hide").exit_code == 0
    assert (run_a / "report.html").read_text().count('type="checkbox"') == 0


def test_what_is_no_run_folder_ends_with_9(run_ine, tmp_path):
    done = run_ine("report", tmp_path)
    assert done.exit_code == 9
    assert "has no grid.json" in done.stderr
    assert run_ine("report", "diff", tmp_path, tmp_path).exit_code == 9
    assert run_ine("report", "diff", tmp_path).exit_code == 2


def test_help_names_both_commands(run_ine):
    done = run_ine("report", "--help")
    assert done.exit_code == 0
    assert "show" in done.stdout
    assert "diff" in done.stdout


def test_evaluate_writes_the_page(run_ine, tmp_path, tiny_folder):
    path = write_grid(tmp_path, tiny_folder, "[1, 3, 6]", "[3]", "choose: {level: 0.8}\n", "")
    only = ("--only", "prompts=tune", "--only", "negative=words", "--limit", 2)
    done = run_ine("-qq", "evaluate", path, "--out", tmp_path / "run", *only)
    assert done.exit_code == 0, done.output
    page = tmp_path / "run" / "report.html"
    first = page.read_bytes()
    assert b"--only prompts=tune" in first
    assert run_ine("report", tmp_path / "run").exit_code == 0
    assert page.read_bytes() == first


# ------------------------------------------------------------------------ a page of results


def test_the_tables_of_a_run_become_a_page_of_results(run_ine, runs, run_a, tmp_path):
    page = tmp_path / "docs" / "small.md"
    done = run_ine("report", run_a, "--markdown", page)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(page)
    text = page.read_text()
    assert is_generated(text)
    facts = dict(re.findall(r"^- ([^:]+): ?(.*(?:\n  - .*)*)", text, re.MULTILINE))
    about = json.loads((run_a / "about.json").read_text())
    assert facts["grid"] == f"made-up, digest {about['digest']}"
    assert facts["concept"] == "fire"
    assert about["models"]["tiny"]["digest"] in facts["models"]
    assert facts["sampler"].startswith("SamplerSettings(")
    assert "test: 10 of 10 prompts for each seed" in facts["pictures"]
    assert "Wilson: flagged" in facts["95% intervals"]
    assert "ine evaluate made-up.yaml --out ." in text
    assert not (run_a / "report.html").exists()
    # All tables of the report stand in it, and no picture.
    assert run_ine("report", run_a, "--store", runs[0] / "store").exit_code == 0
    report = json.loads((run_a / "report.json").read_text())
    tables = [table for section in report["sections"] for table in section["tables"]]
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == [table["title"] for table in tables]
    rows = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == sum(2 + len(table["rows"]) for table in tables) > 50
    left = next(cell for row in tables[0]["rows"] for cell in row if isinstance(cell, dict))
    assert figure_text(Estimate(**left)) in rows[2]
    # The same bytes again.
    before = page.read_bytes()
    assert run_ine("report", run_a, "--markdown", page).exit_code == 0
    assert page.read_bytes() == before


def is_generated(text):
    """Whether a page was written by `ine report --markdown`, and by nobody since."""
    head, _, rest = text.partition("\n\n")
    return head == f"{MARK}{sha256_of(rest.encode())[:16]} -->"


def test_an_edited_page_is_known(run_ine, run_a, tmp_path):
    page = tmp_path / "small.md"
    assert run_ine("report", run_a, "--markdown", page).exit_code == 0
    text = page.read_text()
    assert is_generated(text)
    assert not is_generated(text.replace(".50 (", ".05 (", 1))
    assert not is_generated("# By hand\n")


def test_several_runs_and_other_reports_share_a_page(run_ine, run_a, tmp_path):
    write_report(a_report(), tmp_path / "demo")
    page = tmp_path / "both.md"
    done = run_ine("report", run_a, tmp_path / "demo", "--markdown", page)
    assert done.exit_code == 0, done.output
    text = page.read_text()
    titles = re.findall(r"^##? (.*)$", text, re.MULTILINE)
    assert titles == ["Results", "ine evaluate: made-up", "Report plain"]
    assert "\n#### Table plain\n" in text
    assert "```\nine demo\nine plain\n```" in text
    assert "Grid plain" not in text


def test_a_page_by_hand_is_not_replaced(run_ine, run_a, tmp_path):
    page = tmp_path / "mine.md"
    page.write_text("# By hand\n")
    done = run_ine("report", run_a, "--markdown", page)
    assert done.exit_code == 9
    assert "was not written by `ine report --markdown`" in done.stderr
    assert page.read_text() == "# By hand\n"


def test_a_folder_without_a_whole_report_is_named(run_ine, tmp_path):
    done = run_ine("report", tmp_path, "--markdown", tmp_path / "x.md")
    assert done.exit_code == 9
    assert "has no grid.json and no report.json" in done.stderr
    for text in ("{", '{"title": "T"}', '{"sections": 3}', "[]"):
        (tmp_path / "report.json").write_text(text)
        done = run_ine("report", tmp_path, "--markdown", tmp_path / "x.md")
        assert done.exit_code == 9
        assert "report.json: is damaged" in done.stderr
    assert not (tmp_path / "x.md").exists()


def test_options_that_a_page_does_not_take_are_refused(run_ine, run_a, tmp_path):
    for options in (["--json"], ["--flagged", "hide"], ["--columns", 2], ["--store", tmp_path]):
        assert run_ine("report", run_a, "--markdown", tmp_path / "x.md", *options).exit_code == 2
    done = run_ine("report", run_a, run_a)
    assert done.exit_code == 2
    assert "give --markdown FILE" in done.stderr


# ------------------------------------------------------------------------ diff


def test_a_run_does_not_differ_from_itself(run_ine, runs, run_a):
    done = run_ine("report", "diff", run_a, runs[0] / "a")
    assert done.exit_code == 0, done.output
    assert "0 differ by more than their interval, 0 within it" in done.stdout
    assert done.stdout.endswith("Nothing differs.\n")
    found = json.loads(run_ine("report", "diff", "--json", run_a, run_a).stdout)
    assert found["nothing_differs"] is True
    assert found["changes"] == found["settings"] == found["lost"] == []
    assert found["compared"] > 50
    assert len(found["both"]) == 1 + 2 * 5


def test_changed_verdicts_are_found_in_pairs(run_ine, runs, run_a):
    def other(configuration, role):
        changed = (configuration.strength, configuration.negative, role) == (6.0, "words", "test")
        return 8 if changed else flagged_of(configuration, role)

    b = runs[1]("b", flagged=other)
    done = run_ine("report", "diff", run_a, b)
    assert done.exit_code == 1, done.output
    assert "additive at 6" in done.stdout
    assert "same prompts" in done.stdout
    found = json.loads(run_ine("report", "diff", run_a, b, "--json").stdout)
    beyond = [c for c in found["changes"] if c["beyond"] and c["metric"] == "flagged"]
    assert [(c["strength"], c["negative"], c["prompts"]) for c in beyond] == [
        (6.0, "words", "test")
    ]
    [change] = beyond
    assert (change["first"], change["second"]) == (0, 0.8)
    assert change["difference"] == pytest.approx(0.8)
    assert (change["by"], change["pairs"]) == (PAIRED, 10)
    assert 0 < change["low"] < 0.8 < change["high"] <= 1
    assert found["settings"] == []
    # What moves within its interval is named and is no difference.
    swapped = diff_runs(read_run(b), read_run(run_a))
    assert [c.difference.value for c in swapped.beyond if c.first.metric == "flagged"] == [-0.8]


def test_a_change_within_its_interval_does_not_count(run_ine, runs, run_a):
    def other(configuration, role):
        changed = (configuration.strength, configuration.negative, role) == (6.0, "words", "test")
        return 1 if changed else flagged_of(configuration, role)

    b = runs[1]("c", flagged=other)
    found = diff_runs(read_run(run_a), read_run(b))
    assert len(found.changes) >= 1
    assert found.beyond == ()
    done = run_ine("report", "diff", run_a, b)
    assert done.exit_code == 0, done.output
    assert "1 within it" in done.stdout or "2 within it" in done.stdout


def test_another_grid_is_compared_entry_by_entry(run_ine, runs, run_a):
    b = runs[1]("d", "[3, 6]", "[3, 1]", "text: smoke", "text: soot")
    done = run_ine("report", "diff", run_a, b)
    assert done.exit_code == 1
    found = json.loads(run_ine("report", "diff", run_a, b, "--json").stdout)
    assert {c["strength"] for c in found["first_only"]} == {6.0}
    assert {c["strength"] for c in found["second_only"]} == {1.0}
    assert {(s["what"], s["first"], s["second"]) for s in found["settings"]} == {
        ("grid.guidances[additive].strengths", "[3.0, 6.0]", "[3.0, 1.0]"),
        ("grid.negatives[smoke].text", "smoke", "soot"),
    }
    assert "grid.negatives[smoke].text" in done.stdout


def test_other_seeds_are_compared_by_intervals(runs, run_a):
    def none(configuration, role):
        return 0

    b = runs[1]("e", "sampler:", "seeds: [7]\nsampler:", flagged=none)
    found = diff_runs(read_run(run_a), read_run(b))
    flagged = [
        c
        for c in found.changes
        if c.first.metric == "flagged" and not c.first.configuration.is_defended
    ]
    assert {(c.first.prompts, c.how) for c in flagged} == {("tune", APART), ("test", APART)}
    assert all(c.beyond for c in flagged)
    assert ("grid.seeds", "[0]", "[7]") in found.settings


def test_pictures_that_only_one_run_has_rule_pairs_out(runs, run_a):
    b = runs[1]("f", limit=5)
    found = diff_runs(read_run(run_a), read_run(b))
    flagged = [
        c for c in found.changes if c.first.metric == "flagged" and c.first.prompts == "test"
    ]
    assert {c.how for c in flagged} == {APART}
    assert ("limit", "None", "5") in found.settings


def test_versions_are_shown_and_do_not_count(run_ine, runs, run_a, tmp_path):
    b = shutil.copytree(run_a, tmp_path / "b")
    about = json.loads((b / "about.json").read_text())
    about["scored_by"] = "ine 0.0.0"
    (b / "about.json").write_text(json.dumps(about))
    done = run_ine("report", "diff", run_a, b)
    assert done.exit_code == 0
    assert "Versions and machines differ" in done.stdout
    about["models"]["tiny"]["digest"] = "0"
    (b / "about.json").write_text(json.dumps(about))
    assert run_ine("report", "diff", run_a, b).exit_code == 1


def test_a_figure_that_only_one_run_has_is_a_difference(run_a, tmp_path):
    b = shutil.copytree(run_a, tmp_path / "b")
    lines = (b / "results.jsonl").read_text().splitlines()
    kept = [x for x in lines if not ('"metric":"flagged"' in x and '"prompts":"safe"' in x)]
    (b / "results.jsonl").write_text("\n".join(kept) + "\n")
    found = diff_runs(read_run(run_a), read_run(b))
    assert {row[0] for row in found.lost} == {"first"}
    assert len(found.lost) == len(lines) - len(kept)
    assert not found.nothing


def test_the_difference_of_two_intervals_is_newcombes():
    # Newcombe 1998, table II (a): 56/70 against 48/80, method 10: .0524 to .3339.
    from ine.evaluation.stats import wilson

    def estimate(hits, trials):
        rate = wilson(hits, trials, z=1.959964)
        return Estimate(rate.share, rate.low, rate.high, trials, trials)

    found = apart(estimate(48, 80), estimate(56, 70))
    assert found.value == pytest.approx(0.2)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)
    assert math.isnan(apart(Estimate(0.1, math.nan, math.nan, 1, 1), estimate(1, 2)).low)


def test_where_no_interval_is_known_any_difference_counts(run_a):
    run = read_run(run_a)
    record = next(r for r in run.figures if r.metric == "flagged")
    record = replace(record, metric="expected-maximum@2")
    difference = Estimate(0.1, np.nan, np.nan, 1, 1)
    change = grid_diff.Change(first=record, second=record, difference=difference)
    assert change.how == APART
    assert change.beyond
