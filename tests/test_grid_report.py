"""The report of a grid: from the run folder alone, nothing chosen on test prompts."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from made_up_grid import flagged_of, make_run, write_grid
from test_report import Page, holds

from ine.display import shrunk
from ine.errors import OutputError
from ine.evaluation import grid_tests, reported
from ine.evaluation.cells import Configuration
from ine.evaluation.grid import GridNegative
from ine.evaluation.grid_tests import flag_tests, preservation_tests
from ine.evaluation.paired import holm, mcnemar
from ine.evaluation.run_folder import read_run
from ine.report import pictures as grid_pictures
from ine.report.chosen import best_of_tuning
from ine.report.costs import cost_ratio
from ine.report.data import report_figures
from ine.report.grid import blur_of, grid_report, write_grid_report
from ine.report.heat_maps import TOO_NARROW
from ine.report.pictures import evenly
from ine.store.pictures import Store

RESULTS = ("grid.json", "grid.yaml", "results.jsonl", "results.csv", "chosen.json")


@pytest.fixture(scope="module")
def made_up(tmp_path_factory, tiny_folder):
    """The run folder of `made_up_grid`."""
    folder = tmp_path_factory.mktemp("grid")
    make_run(write_grid(folder, tiny_folder), folder / "run")
    return folder / "run"


@pytest.fixture
def copy(made_up, tmp_path):
    return shutil.copytree(made_up, tmp_path / "run")


def rows_of(folder):
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


def value(folder, **wanted):
    """The one value of results.csv with these columns."""
    wanted = {"category": "", **wanted}
    found = [r for r in rows_of(folder) if all(r[k] == v for k, v in wanted.items())]
    [row] = found
    return float(row["value"])


def table(report, title):
    [found] = [t for s in report["sections"] for t in s["tables"] if t["title"] == title]
    return found


def section(report, title):
    [found] = [s for s in report["sections"] if s["title"].startswith(title)]
    return found


def edit(folder, name, change):
    """Change a JSON file of a run folder."""
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))


# ------------------------------------------------------------------------ a run read back


def test_a_run_folder_is_read_back_whole(made_up):
    run = read_run(made_up)
    assert len(run.configurations) == 1 + 3 * 4 + 3
    assert [len(p.keys) for p in run.pictures.values()].count(10) == 1 + 3 * 4
    group = Configuration(model="tiny", guidance="additive", strength=3.0, negative="ash")
    assert [c.negative for c in run.members(group)] == ["ash one", "ash two"]
    assert run.label(group) == "tiny, additive at 3, ash (2 pooled)"
    record = run.figure(group, "test", "flagged", "mini-fire@0.5")
    flags = np.concatenate([p.flagged["mini-fire@0.5"] for p in run.parts(group, "test")])
    assert record.estimate.value == flags.mean() == 0.1
    assert record.estimate.count == 20


def test_preservation_per_picture_is_that_of_the_figures(made_up):
    run = read_run(made_up)
    for record in run.figures:
        if record.metric == "judge-cosine":
            values = run.kept(record.configuration, record.prompts, "judge-cosine")
            parts = run.parts(record.configuration, record.prompts)
            mean = np.concatenate([values(p) for p in parts]).mean()
            assert mean == pytest.approx(record.estimate.value, abs=2e-6)


@pytest.mark.parametrize("name", [*RESULTS[:3], "chosen.json", "about.json", "pictures.jsonl"])
def test_an_unfinished_run_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(OutputError, match=f"has no {name}"):
        read_run(copy)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("results.jsonl", '{"model": "tiny"}\n', "damaged"),
        ("results.jsonl", "{\n", "line 1 is damaged"),
        ("pictures.jsonl", "[]\n", "damaged"),
        ("about.json", "{}", "damaged"),
        ("about.json", "{", "damaged"),
        ("grid.json", '{"kind": "concept"}', "not of `ine evaluate`"),
        ("grid.json", '{"kind": "grid-run", "digest": "0"}', "results are of another grid"),
        ("grid.yaml", "kind: grid", "no grid that this version"),
        ("chosen.json", '[{"model": "tiny"}]', "damaged"),
    ],
)
def test_damaged_files_are_named(copy, name, text, message):
    (copy / name).write_text(text)
    with pytest.raises(OutputError, match=message):
        read_run(copy)


def test_what_is_no_folder_is_named(tmp_path):
    with pytest.raises(OutputError, match="is no folder"):
        read_run(tmp_path / "nowhere")


# ------------------------------------------------------------------------ the page


def test_the_page_is_whole_safe_and_the_same_again(copy):
    page = write_grid_report(copy)
    first = page.read_bytes()
    assert write_grid_report(copy).read_bytes() == first
    found = Page(page)
    assert not found.named("script")
    assert "Verdicts <script>alert(1)</script> & pictures." in found.text
    assert not found.named("link")
    policy = [m["content"] for m in found.named("meta") if "http-equiv" in m]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert all(i["src"].startswith("data:image/png;base64,") for i in found.named("img"))
    assert len(found.named("svg")) == 1
    assert (copy / "report.md").read_text().count("\n## ") >= 7


def test_every_figure_of_the_heat_maps_is_that_of_results_csv(made_up):
    report = report_figures(grid_report(read_run(made_up)))
    for prompts in ("test", "safe"):
        found = table(report, f"{prompts}: flagged by mini-fire@0.5")
        assert found["columns"] == ["model, guidance", "none", "words", "smoke", "ash"]
        assert [row[0] for row in found["rows"]] == ["tiny, undefended", "tiny, additive"]
        for name, *cells in found["rows"]:
            for negative, cell in zip(found["columns"][1:], cells, strict=True):
                if cell == "-":
                    continue
                rows = [
                    r
                    for r in rows_of(made_up)
                    if (r["prompts"], r["metric"], r["category"]) == (prompts, "flagged", "")
                    and r["negative"] == negative
                    and r["strength"] in ("", cell.get("note", "").removeprefix("at ") + ".0")
                ]
                [row] = rows
                values = (cell["value"], cell["low"], cell["high"], cell["count"])
                assert values == (
                    *(float(row[k]) for k in ("value", "low", "high")),
                    int(row["pictures"]),
                )
                assert (name == "tiny, undefended") == (negative == "none")


def test_figures_in_the_page_are_those_of_the_data(copy):
    titles = [c["title"] for c in Page(write_grid_report(copy)).named("td") if "title" in c]
    data = json.loads((copy / "report.json").read_text())
    cells = [
        cell
        for s in data["sections"]
        for t in s["tables"]
        for row in t["rows"]
        for cell in row
        if isinstance(cell, dict)
    ]
    assert len(titles) == len(cells) > 30
    shown = [title.split(";")[0] for title in titles]
    assert shown == ["nan" if c["value"] is None else f"{c['value']:.4g}" for c in cells]


# ------------------------------------------------------------------------ choosing


def test_what_is_best_on_the_test_set_is_not_shown(made_up):
    run = read_run(made_up)
    own = {"model": "tiny", "negative": "words", "prompts": "test", "metric": "flagged"}
    shares = {s: value(made_up, strength=s, **own) for s in ("1.0", "3.0", "6.0")}
    assert min(shares, key=shares.get) == "6.0"
    assert shares["6.0"] == 0
    shown = [c for c in reported.reported(run) if c.is_defended]
    assert {(c.strength, c.negative) for c in shown} == {
        (3.0, "words"),
        (3.0, "smoke"),
        (3.0, "ash"),
    }
    assert reported.withheld(run) == 6
    report = report_figures(grid_report(run))
    chosen = table(report, "Model tiny")
    row = next(r for r in chosen["rows"] if r[0] == "additive at 3, words")
    at = chosen["columns"].index("test: flagged")
    assert row[at]["value"] == 0.5
    # Neither in a table, nor in the text, nor under a picture is any other strength on test sets.
    frontier = section(report, "Frontiers")
    report["sections"].remove(frontier)
    read = section(report, "Figures read off")
    report["sections"].remove(read)
    del report["provenance"]
    text = json.dumps(report)
    assert "at 6" not in text
    assert "at 1" not in text
    assert "6 other configurations have figures on test sets too" in text
    assert "(tune)" in text
    assert "on tune." in frontier["paragraphs"][0]


def test_the_first_paragraph_says_the_test_figures_of_what_tuning_chose(made_up):
    run = read_run(made_up)
    assert best_of_tuning(run, "tiny").negative in ("smoke", "ash")
    report = grid_report(run)
    assert "flags .10 (" in report.lead
    assert "undefended 1.00" in report.lead
    assert "additive at 3" in report.lead


def test_an_oracle_is_no_defence_that_did_best(made_up):
    run = read_run(made_up)
    best = best_of_tuning(run, "tiny").negative
    negatives = tuple(
        n.model_copy(update={"oracle": True}) if n.name == best else n for n in run.grid.negatives
    )
    changed = replace(run, grid=run.grid.model_copy(update={"negatives": negatives}))
    assert best_of_tuning(changed, "tiny").negative not in (best, "none")


def test_choices_that_keep_too_little_are_marked(copy):
    edit(copy, "chosen.json", lambda rows: rows[0].update(reached=False))
    data = report_figures(grid_report(read_run(copy)))
    kept = [row[3] for row in table(data, "Model tiny")["rows"]]
    assert sum("too little" in text for text in kept) == 1


def test_a_sweep_without_a_choice_is_left_out_and_said(copy):
    edit(copy, "chosen.json", list.clear)
    run = read_run(copy)
    assert [c for c in reported.reported(run) if c.is_defended] == []
    assert "Nothing was chosen" in grid_report(run).lead


def test_a_grid_that_chooses_nothing_shows_all_and_says_so(tmp_path, tiny_folder):
    path = write_grid(
        tmp_path, tiny_folder, "choose: {level: 0.8}\n", "", "strengths: [1, 3, 6]",
        "strengths: [3, 6]", "categories: false", "categories: true",
    )  # fmt: skip
    make_run(path, tmp_path / "run", only=["role=test"])
    run = read_run(tmp_path / "run")
    report = grid_report(run)
    assert "chooses nothing" in report.lead
    data = report_figures(report)
    rows = [row[0] for row in table(data, "test: flagged by mini-fire@0.5")["rows"]]
    assert rows == ["tiny, undefended", "tiny, additive at 3", "tiny, additive at 6"]
    assert "chosen on the test sets" in section(data, "Frontiers")["paragraphs"][0]
    # The same strength is compared with the same strength.
    pairs = [(one.new.strength, one.old.strength) for one in flag_tests(run)]
    assert all(new == old for new, old in pairs if old is not None)
    assert len(pairs) == 6
    # Rows of the file have categories; one has two and counts twice.
    found = table(data, "test: flagged by mini-fire@0.5, by category")
    assert found["columns"] == ["configuration", "iron", "kitchen"]
    assert [cell["count"] for cell in found["rows"][0][1:]] == [8, 3]
    assert found["rows"][0][1]["value"] == 1


def test_the_frontier_is_that_of_the_tune_sets(made_up):
    report = grid_report(read_run(made_up))
    [found] = [s for s in report.sections if s.title.startswith("Frontiers")]
    [drawing] = found.drawings
    for negative in ("words", "smoke", "ash"):
        assert f"additive, {negative}, 1: " in drawing.svg
    rows = {(row[0], row[1]): row[2:] for row in found.tables[0].rows}
    for strength in ("1", "3", "6"):
        own = {"strength": f"{strength}.0", "negative": "words"}
        left, kept = rows["additive, words", strength]
        assert left.value == value(made_up, prompts="tune", metric="flagged", **own)
        assert kept.value == value(made_up, prompts="keep", metric="judge-cosine", **own)
    # A colour per negative; all of them are words, and so hollow.
    assert all(f"stroke:var(--c{n});fill:var(--back)" in drawing.svg for n in range(3))
    assert "fill:var(--c" not in drawing.svg


def test_words_are_negatives_of_text_alone():
    def given(**fields):
        return reported.is_words(GridNegative(name="some", **fields))

    assert given(words=True)
    assert given(text="smoke")
    assert not given(words=True, embeddings="some.safetensors")
    assert not given(oracle=True)
    assert not reported.is_words(GridNegative(name="none"))


# ------------------------------------------------------------------------ pictures


def test_pictures_stand_below_those_of_the_same_prompt_and_seed(made_up):
    run = read_run(made_up)
    [test, safe] = grid_pictures.picture_grids(run)
    assert (test.title, safe.title) == ("tiny on test", "tiny on safe")
    assert len(test.column_labels) == 6
    assert [label for label, _ in test.rows] == [run.label(c) for c in reported.reported(run)]
    for configuration, (_, cells) in zip(reported.reported(run), test.rows, strict=True):
        pictures = run.parts(configuration, "test")[0]
        places = [pictures.place_of[key] for key in pictures.keys]
        for label, cell in zip(test.column_labels, cells, strict=True):
            number = next(n for n in places if label.endswith(f"seed {pictures.keys[n][3]}"))
            unit, place = pictures.units[number]
            assert (cell.picture() == Store(made_up).pictures(unit, [place])[0]).all()
            assert cell.flagged == pictures.flagged["mini-fire@0.5"][number]


def test_which_prompts_are_shown_does_not_depend_on_verdicts():
    assert evenly(10, 6) == [0, 2, 4, 5, 7, 9]
    assert evenly(3, 6) == [0, 1, 2]
    assert evenly(5, 1) == [0]
    assert evenly(0, 4) == []


def test_pictures_are_read_one_at_a_time_and_only_for_the_page(made_up, monkeypatch):
    asked, real = [], Store.pictures

    def counting(self, key, only=None):
        asked.append(only)
        return real(self, key, only)

    monkeypatch.setattr(Store, "pictures", counting)
    run = read_run(made_up)
    grid_report(run)
    assert asked == []
    grids = grid_pictures.picture_grids(run)
    write = write_grid_report
    write(made_up)
    assert len(asked) == sum(len(cells) for grid in grids for _, cells in grid.rows)
    assert all(len(only) == 1 for only in asked)


def test_large_pictures_are_made_smaller_for_the_page():
    large = np.random.default_rng(0).integers(0, 256, (512, 256, 3), dtype=np.uint8)
    assert shrunk(large, grid_pictures.SIDE).shape == (192, 96, 3)
    assert shrunk(large, 512) is large


def test_flagged_pictures_are_blurred_until_clicked(copy):
    page = Page(write_grid_report(copy))
    flagged = sum(
        cell.flagged
        for grid in grid_pictures.picture_grids(read_run(copy))
        for _, cells in grid.rows
        for cell in cells
    )
    veils = [tag for tag in page.named("input") if tag["type"] == "checkbox"]
    assert len(veils) == flagged > 5


def test_flagged_pictures_of_people_are_not_in_the_file(copy):
    run = read_run(copy)
    assert run.about["concept"]["people"] is False
    assert blur_of(run) == "click"
    of_people = replace(run, about={**run.about, "concept": {"people": True}})
    assert blur_of(of_people) == "hide"
    edit(copy, "about.json", lambda a: a.pop("concept"))
    run = read_run(copy)
    people = replace(run, grid=run.grid.model_copy(update={"concept": "nudity"}))
    assert blur_of(people) == "hide"
    own = replace(run, grid=run.grid.model_copy(update={"concept": "my-own.yaml"}))
    assert blur_of(own) == "click"
    edit(copy, "about.json", lambda a: a["rules"]["mini-fire@0.5"].update(detector="nudenet"))
    own = replace(read_run(copy), grid=own.grid)
    assert blur_of(own) == "hide"
    assert blur_of(replace(own, about={**own.about, "concept": {"people": False}})) == "click"
    [grid, _] = grid_pictures.picture_grids(run)
    cells = [cell for _, cells in grid.rows for cell in cells]
    hidden = next(cell.picture() for cell in cells if cell.flagged)
    open_ = next(cell.picture() for cell in cells if not cell.flagged)
    shown = Page(write_grid_report(copy, blur="hide")).pictures()
    assert not holds(shown, hidden)
    assert holds(shown, open_)
    assert holds(Page(write_grid_report(copy, blur="click")).pictures(), hidden)


def test_pictures_that_are_not_at_hand_are_said_to_be(copy, tmp_path):
    whole = write_grid_report(copy).read_bytes()
    (copy / "units").rename(tmp_path / "units")
    page = Page(write_grid_report(copy))
    assert page.named("img") == []
    assert "ine report RUN --store DIR" in page.text
    assert page.text.count("not at hand") > 20
    assert write_grid_report(copy, store=tmp_path).read_bytes() == whole
    edit(copy, "grid.json", lambda head: head.update(store=str(tmp_path)))
    assert write_grid_report(copy).read_bytes() == whole


# ------------------------------------------------------------------------ tests


def test_negatives_are_tested_on_the_same_prompts_as_one_family(made_up):
    run = read_run(made_up)
    found = flag_tests(run)
    names = [(one.new.negative, one.old.negative) for one in found]
    assert names == [("words", "none"), ("smoke", "words"), ("ash", "words")]
    assert [one.adjusted for one in found] == holm([one.test.p for one in found])
    assert [one.test.only_first for one in found] == [0, 0, 0]
    assert [one.test.only_second for one in found] == [5, 4, 4]
    assert [one.test.pairs for one in found] == [10] * 3
    assert [round(one.difference.value, 6) for one in found] == [-0.5, -0.4, -0.4]
    assert found[1].test == mcnemar([1] + [0] * 9, [1] * 5 + [0] * 5)
    # Two seeds pooled are not twice the evidence.
    assert found[2].test == found[1].test
    assert {one.words for one in found} == {"no difference shown"}
    data = report_figures(grid_report(run))
    shown = table(data, "Flagged less often?")
    assert [row[-1] for row in shown["rows"]] == [one.words for one in found]
    assert "One family of 3 tests" in shown["notes"][0]


def test_a_clear_difference_is_called_one(made_up, monkeypatch):
    monkeypatch.setattr(grid_tests, "LEVEL", 0.5)
    assert {one.words for one in flag_tests(read_run(made_up))} == {"fewer flagged"}


def test_no_worse_is_only_claimed_with_enough_pictures(made_up, monkeypatch):
    run = read_run(made_up)
    found = preservation_tests(run)
    assert [(one.new.negative, one.metric) for one in found] == [
        ("smoke", "judge-cosine"),
        ("ash", "judge-cosine"),
    ]
    assert all(one.test.within for one in found)
    assert not any(one.test.shown for one in found)
    shown = table(report_figures(grid_report(run)), "No worse on benign prompts?")
    assert {row[-1] for row in shown["rows"]} == {"not shown, fewer than 1000 pictures"}
    # Six pictures, or twelve of two members: with fewer asked for the claim is made.
    monkeypatch.setattr(grid_tests, "ENOUGH", 12)
    assert [one.test.shown for one in preservation_tests(run)] == [False, True]


# ------------------------------------------------------------------------ cost, sets, provenance


def test_costs_are_multiples_of_the_undefended(made_up):
    run = read_run(made_up)
    rows = reported.reported(run)
    assert [round(cost_ratio(run, c), 6) for c in rows] == [1.0, 1.5, 1.5, 1.5]
    data = report_figures(grid_report(run))
    shown = table(data, "U-Net evaluations of a picture")
    assert [row[1:] for row in shown["rows"]] == [["2", "2", "1.00"]] + [["3", "3", "1.50"]] * 3


def test_prompt_sets_are_listed_with_what_was_left_out(copy):
    edit(copy, "about.json", lambda a: a["sets"]["test"].update(refused=3, duplicates=2))
    found = table(report_figures(grid_report(read_run(copy))), "What was read")
    row = dict(zip(found["columns"], next(r for r in found["rows"] if r[0] == "test"), strict=True))
    assert (row["read"], row["refused"], row["duplicates"], row["used"]) == ("10", "3", "2", "10")


def test_it_says_how_to_run_it_again(made_up):
    run = read_run(made_up)
    found = grid_report(run).provenance
    assert found["the grid file"] == (made_up / "grid.yaml").read_text().splitlines()
    assert run.about["digest"] in found["grid"]
    [model] = found["models"]
    assert run.about["models"]["tiny"]["digest"] in model
    assert found["commands"][0] == "ine evaluate made-up.yaml --out ."
    assert all(
        run.sets[n]["sha256"] in t for n, t in zip(run.sets, found["prompt sets"], strict=True)
    )
    narrowed = replace(run, about={**run.about, "limit": 4, "only": ["negative=words"]})
    command = grid_report(narrowed).provenance["commands"][0]
    assert command.endswith("--limit 4 --only negative=words")


def test_few_clusters_are_warned_of(made_up):
    data = report_figures(grid_report(read_run(made_up)))
    maps = section(data, "Heat maps")["tables"]
    assert any(TOO_NARROW in t["notes"] for t in maps)


def test_made_up_verdicts_are_what_was_asked_for(made_up):
    for strength, share in (("3.0", 0.5), ("6.0", 0.0), ("1.0", 0.9)):
        own = {"strength": strength, "negative": "words", "prompts": "test", "metric": "flagged"}
        assert value(made_up, **own) == share
    assert flagged_of(Configuration(model="m"), "tune") == 8
