"""The report: complete, self-contained, safe to open, equal in its three forms."""

import base64
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ine.evaluation.stats import Estimate, Rate, cluster_bootstrap, decimal, wilson
from ine.report.data import report_figures, report_of
from ine.report.page import write_report
from ine.report.text import figure_text, text_table
from ine.report.values import Cell, Noted, PictureGrid, Report, Section, Table

NASTY = '<script>alert("x")</script> & | *bold* https://example.org/a.png'
SHARE = wilson(8, 10)
MEAN = cluster_bootstrap([0, 1, 1, 1, 1, 1, 0, 1], [0, 0, 1, 1, 2, 2, 3, 3])
LOSS = Estimate(-0.052, -0.12, 0.021, 60, 20)
NO_INTERVAL = Estimate(0.3, math.nan, math.nan, 2, 1)


def picture(seed, side=8):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def a_report(text="plain"):
    grid = PictureGrid(
        title=f"Grid {text}",
        caption=f"Same seeds. {text}",
        column_labels=["a car in the volcano", text],
        rows=[
            ("base", [Cell(picture(1), flagged=True, note=text), Cell(picture(2), flagged=True)]),
            ("defended", [Cell(picture(3, side=256)), None]),
        ],
    )
    table = Table(
        title=f"Table {text}",
        caption=f"Test prompts. {text}",
        columns=["model", "defence success", "kept", text],
        rows=[["base", SHARE, MEAN, text], [text, wilson(0, 10), LOSS, NO_INTERVAL]],
        notes=[f"A note. {text}"],
        better={"defence success": "high", "kept": "low"},
    )
    return Report(
        title=f"Report {text}",
        lead=f"Lead. {text}",
        sections=[Section(f"Section {text}", [f"Paragraph {text}"], [grid], [table])],
        provenance={"seed": "0", "recipe": text, "commands": ["ine demo", f"ine {text}"]},
        next_steps=[(f"Go on. {text}", f"ine generate {text}")],
    )


class Page(HTMLParser):
    """Every tag with its attributes, and the visible text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.inside = [], "", ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside != "style":
            self.text += data

    def handle_endtag(self, tag):
        self.inside = ""

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]

    def pictures(self):
        prefix = "data:image/png;base64,"
        sources = [image["src"] for image in self.named("img")]
        assert all(source.startswith(prefix) for source in sources)
        return [
            np.array(Image.open(io.BytesIO(base64.b64decode(source.removeprefix(prefix)))))
            for source in sources
        ]


def holds(pictures, wanted):
    return any(p.shape == wanted.shape and (p == wanted).all() for p in pictures)


@pytest.mark.parametrize("blur", ["show", "click"])
def test_every_picture_is_in_the_page(tmp_path, blur):
    page = Page(write_report(a_report(), tmp_path, blur=blur))
    shown = page.pictures()
    assert len(shown) == 3
    assert holds(shown, picture(1))
    assert holds(shown, picture(2))
    assert holds(shown, picture(3, side=256))
    veils = [tag for tag in page.named("input") if tag["type"] == "checkbox"]
    assert len(veils) == (2 if blur == "click" else 0)
    assert all("Show the picture" in veil["aria-label"] for veil in veils)


def test_hidden_pictures_are_not_in_the_file(tmp_path):
    shown = Page(write_report(a_report(), tmp_path, blur="hide")).pictures()
    assert len(shown) == 3
    assert not holds(shown, picture(1))
    assert not holds(shown, picture(2))
    assert holds(shown, picture(3, side=256))
    hidden = [p for p in shown if p.shape == (8, 8, 3)]
    assert all(len(np.unique(p.reshape(-1, 3), axis=0)) < 64 for p in hidden)


def test_pictures_may_be_read_when_the_page_is_written(tmp_path):
    asked = []

    def reading():
        asked.append(1)
        return picture(1)

    cells = [Cell(reading, flagged=True), Cell(lambda: None, flagged=True, note="lost")]
    report = Report(
        "R", "", [Section("S", grids=[PictureGrid("G", "", ["a", "b"], [("r", cells)])])], {}
    )
    assert asked == []
    page = Page(write_report(report, tmp_path, blur="click"))
    assert asked == [1]
    [shown] = page.pictures()
    assert (shown == picture(1)).all()
    assert "not at hand" in page.text
    assert len([tag for tag in page.named("input") if tag["type"] == "checkbox"]) == 1
    [hidden] = Page(write_report(report, tmp_path, blur="hide")).pictures()
    assert not (hidden == picture(1)).all()


def test_figures_may_carry_a_few_words(tmp_path):
    table = Table(
        "T",
        "",
        ["model", "left"],
        [["a", Noted(SHARE, "at 3")], ["b", SHARE]],
        better={"left": "low"},
    )
    page = Page(write_report(Report("R", "", [Section("S", tables=[table])], {}), tmp_path))
    cells = [c for c in page.named("td") if "figure" in c.get("class", "")]
    assert cells[0] == cells[1]
    assert page.text.count("at 3") == 1
    data = json.loads((tmp_path / "report.json").read_text())
    first, second = (row[1] for row in data["sections"][0]["tables"][0]["rows"])
    assert first == {**second, "note": "at 3"}
    assert "| a | .80 (.49-.94), at 3 |" in (tmp_path / "report.md").read_text()
    assert "N = 10." in (tmp_path / "report.md").read_text()
    assert ".80 (.49-.94) at 3" in text_table(table)


def test_small_pictures_are_enlarged_sharply_and_large_ones_smoothly(tmp_path):
    images = Page(write_report(a_report(), tmp_path)).named("img")
    assert ["pixelated" in i.get("class", "") for i in images] == [True, True, False]


def test_text_is_escaped_everywhere(tmp_path):
    path = write_report(a_report(NASTY), tmp_path)
    page = Page(path)
    assert not page.named("script")
    assert "<script" not in path.read_text()
    # Titles, captions, labels, notes, cells, steps and provenance show it literally.
    assert page.text.count(NASTY) >= 14
    assert any(NASTY in image["alt"] for image in page.named("img"))
    assert not re.search(r"(?<!\\)<script", (tmp_path / "report.md").read_text().split("```")[0])


def test_commands_in_text_are_code(tmp_path):
    section = Section("S", ["Use `ine <x>` & `more`.", "One ` stays."])
    path = write_report(Report("R", "", [section], {}), tmp_path)
    assert "<p>Use <code>ine &lt;x&gt;</code> &amp; <code>more</code>.</p>" in path.read_text()
    assert "<p>One ` stays.</p>" in path.read_text()
    text = (tmp_path / "report.md").read_text()
    assert "Use `ine <x>` \\& `more`." in text
    assert "One \\` stays." in text


def test_page_needs_no_network(tmp_path):
    path = write_report(a_report(NASTY), tmp_path)
    page = Page(path)
    outside = [
        (tag, name, value)
        for tag, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
        and not value.startswith(("data:image/png;base64,", "#"))
    ]
    assert outside == []
    assert not page.named("link")
    style = path.read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    policy = [m["content"] for m in page.named("meta") if "http-equiv" in m]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_page_can_be_read_aloud(tmp_path):
    page = Page(write_report(a_report(), tmp_path))
    assert page.named("html") == [{"lang": "en"}]
    assert len(page.named("caption")) == len(page.named("table")) == 2
    assert all(header["scope"] in ("row", "col") for header in page.named("th"))
    assert page.named("img")[0]["alt"] == (
        "base, a car in the volcano; flagged by the detector; plain"
    )
    assert page.text.count("2 of 2 flagged") == page.text.count("0 of 1 flagged") == 1
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {a["href"].removeprefix("#") for a in page.named("a")} <= targets


def test_a_grid_without_flags_says_nothing_of_them(tmp_path):
    grid = PictureGrid("Grid", "", ["one"], [("row", [Cell(picture(1))])])
    page = Page(write_report(Report("R", "", [Section("S", grids=[grid])], {}), tmp_path))
    assert "flagged" not in page.text


def test_figures_are_shown_with_interval_and_support(tmp_path):
    page = Page(write_report(a_report(), tmp_path))
    cells = [c for c in page.named("td") if "figure" in c.get("class", "")]
    assert cells[0]["title"] == "0.8; 95% interval 0.4902 to 0.9433; 8 of 10"
    assert cells[1]["title"].endswith("N = 8 in 4 clusters")
    assert cells[4]["title"] == "0.3; no interval; N = 2 in 1 clusters"
    for text in (".80", ".49\u2013.94", "\u2212.05", "\u2212.12 to .02", "no interval"):
        assert text in page.text


def test_colour_follows_the_direction_that_is_better(tmp_path):
    page = Page(write_report(a_report(), tmp_path))
    cells = [c for c in page.named("td") if "figure" in c.get("class", "")]
    # .8 is good where high is better; .75 is bad where low is; -.05 is no share.
    assert [c["class"] for c in cells] == [
        "figure good",
        "figure bad",
        "figure bad",
        "figure",
        "figure",
    ]
    assert cells[0]["style"] == "--strength:60"
    assert cells[2]["style"] == "--strength:100"


def test_json_holds_every_figure(tmp_path):
    write_report(a_report(NASTY), tmp_path)
    found = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    (section,) = found["sections"]
    (table,) = section["tables"]
    assert table["rows"][0] == [
        "base",
        {"share": 0.8, "low": SHARE.low, "high": SHARE.high, "hits": 8, "trials": 10},
        {"value": 0.75, "low": MEAN.low, "high": MEAN.high, "count": 8, "clusters": 4},
        NASTY,
    ]
    assert table["rows"][1][3] == {
        "value": 0.3,
        "low": None,
        "high": None,
        "count": 2,
        "clusters": 1,
    }
    (grid,) = section["grids"]
    assert grid["rows"][0] == {
        "label": "base",
        "cells": [{"flagged": True, "note": NASTY}, {"flagged": True, "note": ""}],
    }
    assert grid["rows"][1]["cells"][1] is None
    assert found["provenance"]["commands"] == ["ine demo", f"ine {NASTY}"]


def test_a_report_is_read_back_from_its_figures():
    found = report_figures(report_of(report_figures(a_report(NASTY))))
    wanted = report_figures(a_report(NASTY))
    assert found["sections"][0].pop("grids") == []
    assert wanted["sections"][0].pop("grids") != []
    assert found.pop("next_steps") == []
    del wanted["next_steps"]
    assert found == wanted


def test_json_takes_counts_from_numpy(tmp_path):
    share = wilson(np.array([True, False]).sum(), np.int64(2))
    table = Table("T", "", ["a", "b"], [["x", share]])
    write_report(Report("R", "", [Section("S", tables=[table])], {}), tmp_path)
    assert '"hits": 1' in (tmp_path / "report.json").read_text()


def test_markdown_has_whole_tables(tmp_path):
    write_report(a_report("a|b"), tmp_path)
    text = (tmp_path / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert widths == {4, 5}
    assert "| base | .80 (.49-.94) | " in text
    assert "| defended | - |  |" in text


def test_writing_again_replaces_and_leaves_nothing_else(tmp_path):
    write_report(a_report("first"), tmp_path / "new")
    path = write_report(a_report("second"), tmp_path / "new")
    assert path == tmp_path / "new" / "report.html"
    assert "first" not in Page(path).text
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.412, ".41"),
        (0.996, "1.00"),
        (0, ".00"),
        (-0.001, ".00"),
        (-0.05, "-.05"),
        (-1, "-1.00"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (23.44, "23.4"),
        (math.inf, "inf"),
        (math.nan, "?"),
    ],
)
def test_decimals(value, text):
    assert decimal(value) == text


def test_figure_text():
    assert figure_text(Rate(8, 10, 0.49, 0.943)) == ".80 (.49-.94)"
    assert figure_text(LOSS) == "-.05 (-.12 to .02)"
    assert figure_text("words") == "words"


def test_text_table_is_aligned():
    table = Table("Title", "Caption.", ["model", "safe"], [["a", wilson(8, 10)], ["bcd", "-"]])
    assert text_table(table).splitlines() == [
        "Title",
        "model           safe",
        "-----  -------------",
        "a      .80 (.49-.94)",
        "bcd                -",
        "Caption.",
        "N = 10.",
    ]


@pytest.mark.parametrize("columns", [3, 8, 12])
def test_text_table_fits_the_terminal_and_loses_nothing(columns):
    names = [f"column{n} of a long name" for n in range(columns)]
    rows = [["x" * 130, *[MEAN] * (columns - 1)], ["guidance of many words " * 4, *[LOSS, "-"] * 9]]
    rows[1] = rows[1][:columns]
    table = Table("Title " * 30, "Caption " * 30, names, rows)
    lines = text_table(table).splitlines()
    assert max(map(len, lines)) <= 100
    text = "".join("".join(lines).split())
    assert text.count("x") == 130
    assert text.count("Caption") == text.count("Title") == 30


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PictureGrid("G", "", ["a", "b"], [("r", [None])]), "row 'r': 1 cells for 2"),
        (lambda: Table("T", "", ["a", "b"], [["x"]]), "1 cells for 2 columns"),
        (lambda: Table("T", "", ["a"], [[0.5]]), "0.5 is a float; expected text"),
        (lambda: Table("T", "", ["a"], [], better={"b": "high"}), "expected one of"),
        (lambda: Table("T", "", ["a"], [], better={"a": "up"}), "'high' or 'low'"),
        (lambda: Report("R", "", [], {"seed": 0}), "provenance 'seed' is 0"),
        (lambda: write_report(a_report(), ".", blur="yes"), "expected one of show, click, hide"),
    ],
)
def test_wrong_reports_are_refused(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_reports_need_no_torch():
    code = "import sys, ine.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
