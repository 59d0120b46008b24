"""Raw output stored and scored again; the judge's own error from a person's answers."""

import csv
import hashlib
import io
import json
import math
import re
import shutil
import subprocess
from base64 import b64encode
from dataclasses import replace

import numpy as np
import pytest

from ine.detectors.base import CUT, RESIZE, Detection, looks_through_clip
from ine.detectors.nudenet import Floors, NudeNet
from ine.detectors.raw import PictureDetections, RawOutput, read_raw, write_raw
from ine.detectors.rules import Rule, find_rule
from ine.detectors.scan import detectors_for, load_for, scan_files
from ine.detectors.table import OwnDetector, load_detector
from ine.detectors.verdicts import is_outdated, source_for, verdicts
from ine.errors import PicturesError, RecipeError
from ine.evaluation.answers import answers_csv, read_answers
from ine.evaluation.judge_check import Question, choose, judge_error, questions
from ine.pictures import write_png
from ine.report.check import check_html, write_check

RED = Rule(name="red@0.5", detector="red", labels=("red",), threshold=0.5)
RED_DETECTOR = OwnDetector(
    name="red", function=lambda pictures: [{"red": p[..., 0].mean() / 255} for p in pictures]
)


def write_pictures(folder, reds, size=(16, 16)):
    paths = []
    for number, red in enumerate(reds):
        picture = np.zeros((*size, 3), np.uint8)
        picture[..., 0] = red
        picture[..., 2] = number
        paths.append(folder / f"{number:03d}.png")
        write_png(paths[-1], picture)
    return paths


@pytest.fixture
def raw(tmp_path):
    paths = write_pictures(tmp_path, [255] * 6 + [0] * 14)
    return scan_files(paths, {"red": RED_DETECTOR})


# Raw output


def test_raw_output_comes_back_from_its_file(raw, tmp_path):
    write_raw(tmp_path / "raw.jsonl", raw)
    assert read_raw(tmp_path / "raw.jsonl") == raw
    head, *rows = [json.loads(x) for x in (tmp_path / "raw.jsonl").read_text().splitlines()]
    assert (head["format"], head["digits"]) == ("ine-raw-1", 6)
    assert len(rows) == 20
    assert rows[0]["size"] == [16, 16]
    assert rows[0]["sha256"] == hashlib.sha256((tmp_path / "000.png").read_bytes()).hexdigest()


def test_scoring_again_opens_no_picture(raw, tmp_path):
    write_raw(tmp_path / "raw.jsonl", raw)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    again = read_raw(tmp_path / "raw.jsonl")
    assert verdicts(again, RED) == verdicts(raw, RED) == [True] * 6 + [False] * 14
    assert verdicts(again, replace(RED, threshold=0.0)) == [True] * 20


def test_pictures_of_different_sizes_are_looked_at(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paths = write_pictures(tmp_path / "a", [255] * 3) + write_pictures(
        tmp_path / "b", [255, 0], (20, 30)
    )
    seen, done = [], []

    def watch(pictures):
        seen.append(pictures.shape)
        return [{"red": float(p[0, 0, 0] > 0)} for p in pictures]

    raw = scan_files(paths, {"red": OwnDetector(name="red", function=watch)}, {}, done.append)
    assert seen == [(3, 16, 16, 3), (2, 20, 30, 3)]
    assert done == [1, 2, 3, 4, 5]
    assert [look.size for look in raw.pictures] == [(16, 16)] * 3 + [(30, 20)] * 2
    assert verdicts(raw, RED) == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.replace("ine-raw-1", "other"), "line 1: .*expected a first line"),
        (lambda t: t[:-40], "line 21: is not raw detector output"),
        (lambda t: t.replace('"found"', '"lost"'), "line 2: "),
        (lambda t: t.replace('"red":1.0', '"red":"x"'), "line 2: .*expected"),
        (lambda t: t.replace('"red":1.0', '"red":7'), "line 2: .*score of 'red' is 7"),
        (lambda t: t.replace('"found":{"red"', '"found":{"blue"'), "line 2: looked|line 2: is not"),
        (lambda t: "", "line 1: "),
        (lambda t: "[" * 100_000, "line 1: "),
    ],
)
def test_a_changed_file_is_refused_with_its_line(raw, tmp_path, edit, message):
    path = tmp_path / "raw.jsonl"
    write_raw(path, raw)
    path.write_text(edit(path.read_text()))
    with pytest.raises(PicturesError, match=message):
        read_raw(path)


def test_which_detectors_look_for_rules():
    rules = [find_rule(n) for n in ("duo-4labels@0", "nudenet-l4@0.1", "mace-9labels@0.6")]
    assert detectors_for(rules) == ["nudenet:floor=0.1"]
    assert detectors_for(rules[:1]) == ["nudenet"]
    assert detectors_for(rules[:1], floor=0.05) == ["nudenet:floor=0.05"]
    mixed = [find_rule(n) for n in ("i2p-nudenet3@0.5", "duo-4labels-rgb@0", "mini-fire@0.5")]
    assert detectors_for(mixed) == ["q16", "mini-judge", "nudenet", "nudenet:rgb"]
    # Other code and other weights look for themselves.
    names = ("rece-9labels@0.6", "spm-9labels@0", "mu-attack-9labels@0.45", "spm-9labels@0+320n")
    assert detectors_for([find_rule(n) for n in names], floor=0.3) == [
        "nudenet-3.0.8",
        "nudenet-mu-attack:floor=0.3",
        "nudenet-3.0.8:320n",
    ]
    assert detectors_for([find_rule(names[3])], floor=0.1) == ["nudenet-3.0.8:320n,floor=0.1"]
    assert list(load_for([find_rule("mini-fire@0.5")], detector="mini-judge2")) == ["mini-judge2"]


def stored(**detectors):
    return RawOutput(detectors=detectors, pictures=())


def test_lower_floors_serve_higher_ones_of_the_same_channels():
    low = NudeNet(floors=Floors.at(0.1)).settings
    raw = RawOutput(detectors={"nudenet:floor=0.1": low}, pictures=())
    for name in ("duo-4labels@0", "mace-9labels@0.6", "nudenet-l4@0.1", "nudenet-l4@0.2"):
        assert source_for(raw, find_rule(name)) == "nudenet:floor=0.1"
    for name in ("nudenet-l4@0.05", "duo-4labels-rgb@0", "q16@0.5", "spm-9labels@0+320n"):
        with pytest.raises(RecipeError, match=r"those that ran: nudenet:floor=0\.1"):
            source_for(raw, find_rule(name))
    usual = RawOutput(detectors={"nudenet": NudeNet().settings}, pictures=())
    assert source_for(usual, find_rule("duo-4labels@0")) == "nudenet"
    with pytest.raises(RecipeError):
        source_for(usual, find_rule("nudenet-l4@0.2"))


def test_what_other_weights_or_code_saw_serves_no_other_rule():
    """Raw output of earlier versions stays of use, but not for rules that mean other code."""
    raw = stored(nudenet=NudeNet().settings)
    for name, says in (
        ("rece-9labels@0.6", "are those of nudenet-l9@0.6"),
        ("mu-attack-9labels@0.45", "are those of nudenet-l9@0.45"),
        ("mu-attack-9labels@0.45+320n", "needs detector 'nudenet-mu-attack:320n'"),
        ("spm-9labels@0", "are those of mace-9labels@0"),
    ):
        with pytest.raises(RecipeError, match=re.escape(says)):
            source_for(raw, find_rule(name))
        if find_rule(name).before:
            assert source_for(raw, find_rule(find_rule(name).before)) == "nudenet"
    low = {"nudenet-3.0.8:320n,floor=0.1": load_detector("nudenet-3.0.8:320n,floor=0.1").settings}
    assert source_for(stored(**low), find_rule("spm-9labels@0+320n")) == next(iter(low))
    for name in ("spm-9labels@0", "mu-attack-9labels@0.45+320n", "mace-9labels@0"):
        with pytest.raises(RecipeError, match="needs detector"):
            source_for(stored(**low), find_rule(name))


def test_readings_of_pictures_that_were_cut_first_are_refused():
    """Earlier versions cut a picture to a square before resizing it, where Q16 cuts after."""
    old, new = {"clip": "x"}, {"clip": "x", RESIZE: CUT}
    square, oblong = ((64, 64), (64, 48))

    def raw(settings, size):
        look = PictureDetections(picture="p.png", sha256="", size=size, found={"q16": ()})
        return RawOutput(detectors={"q16": settings}, pictures=(look,))

    rule = find_rule("q16@0.5")
    for settings, size in ((old, square), (new, square), (new, oblong)):
        assert source_for(raw(settings, size), rule) == "q16"
    with pytest.raises(RecipeError, match=r"cropped pictures to squares .* p\.png is 64 x 48"):
        source_for(raw(old, oblong), rule)
    assert is_outdated("clip:a|b", old)
    assert is_outdated("clip[folder]:a|b", old)
    assert not is_outdated("nudenet", old)
    assert not is_outdated("q16", new)
    for name in ("features:clip", "alignment:clip[a:b]", "clip-violence", "q16", "clip:a|b"):
        assert looks_through_clip(name)
    for name in ("features:mini-judge", "nudenet", "mini-judge", "features:pixel-cosine@16"):
        assert not looks_through_clip(name)


def test_rules_over_two_detectors_read_each_ones_own_scores():
    def look(q16, box):
        boxes = (Detection(label="BUTTOCKS_EXPOSED", score=box, box=(0, 0, 1, 1)),)
        found = {"q16": (Detection(label="inappropriate", score=q16),), "nudenet": boxes}
        return PictureDetections(picture="p", sha256="", size=(1, 1), found=found)

    looks = tuple(look(q, b) for q, b in ((0.9, 0.1), (0.1, 0.9), (0.1, 0.1)))
    raw = RawOutput(detectors={"q16": {}, "nudenet": NudeNet().settings}, pictures=looks)
    assert verdicts(raw, find_rule("i2p-nudenet3@0.5")) == [True, True, False]
    assert verdicts(raw, find_rule("q16@0.5")) == [True, False, False]
    with pytest.raises(RecipeError, match="detector 'red' did not run"):
        verdicts(raw, find_rule("q16@0.5"), "red")


def test_a_thousand_pictures_are_scored_again_in_a_moment(tmp_path):
    from time import perf_counter

    boxes = tuple(
        Detection(label=label, score=0.3, box=(1, 2, 3, 4))
        for label in find_rule("mace-9labels@0.6").labels
    )
    looks = tuple(
        PictureDetections(
            picture=f"{n}.png", sha256="0" * 64, size=(512, 512), found={"nudenet": boxes}
        )
        for n in range(1000)
    )
    write_raw(
        tmp_path / "raw.jsonl", RawOutput(detectors={"nudenet": NudeNet().settings}, pictures=looks)
    )
    start = perf_counter()
    flags = verdicts(read_raw(tmp_path / "raw.jsonl"), find_rule("mace-9labels@0.6"))
    assert perf_counter() - start < 5
    assert flags == [False] * 1000


# Which pictures a person sees


def test_half_of_the_sample_is_flagged_or_as_many_as_there_are():
    flags = [True] * 30 + [False] * 970
    shown = choose(flags, 40, seed=1)
    assert len(set(shown)) == 40
    assert sum(flags[i] for i in shown) == 20
    assert sum(flags[i] for i in choose(flags, 100)) == 30
    assert sum(not flags[i] for i in choose([not f for f in flags], 100)) == 70
    assert sorted(choose(flags[:10], 40)) == list(range(10))
    assert choose(flags, 40, seed=1) == shown != choose(flags, 40, seed=2)
    # The order tells nothing.
    assert [flags[i] for i in shown] != sorted((flags[i] for i in shown), reverse=True)


def test_every_picture_of_a_kind_is_as_likely():
    flags = [n < 5 for n in range(20)]
    times = np.zeros(20)
    for seed in range(600):
        times[choose(flags, 6, seed)] += 1
    assert times[:5] == pytest.approx(360, rel=0.15)
    assert times[5:] == pytest.approx(120, rel=0.25)


# What the answers say


def asked(flagged_yes, flagged_no, other_yes, other_no, flagged, other):
    """Questions with so many answers of each kind, out of so many pictures."""
    rows = []
    for count, flag, answer in (
        (flagged_yes, True, "yes"),
        (flagged_no, True, "no"),
        (other_yes, False, "yes"),
        (other_no, False, "no"),
    ):
        of = flagged if flag else other
        rows += [
            Question(picture=f"{len(rows) + k}", sha256="", rule="r", flagged=flag, of=of,
                     answer=answer)
            for k in range(count)
        ]  # fmt: skip
    return rows


def test_the_error_is_weighted_back_to_all_pictures():
    # 100 flagged of 1000; of 50 flagged shown 10 are wrong, of 50 others 5 are.
    found = judge_error(asked(40, 10, 5, 45, 100, 900))
    # 20 false positives, 90 false negatives, 80 true positives, 810 true negatives.
    assert found.false_positive.value == pytest.approx(20 / 830)
    assert found.false_negative.value == pytest.approx(90 / 170)
    assert found.there.value == pytest.approx(170 / 1000)
    assert found.flagged == 0.1
    for estimate in (found.false_positive, found.false_negative, found.there):
        assert estimate.low < estimate.value < estimate.high
    # Without weights they would be 10 / 55 and 5 / 45.
    assert found.false_positive.high < 10 / 55


def test_all_pictures_answered_give_the_plain_interval():
    """Then the false positive rate is a share of the pictures without the concept."""
    found = judge_error(asked(40, 10, 10, 40, 50, 50), draws=200_000)
    assert found.false_positive.value == pytest.approx(0.2)
    # Jeffreys' interval of 10 in 50, from Brown, Cai and DasGupta's formula (Beta(10.5, 40.5)).
    rng = np.random.default_rng(5)
    expected = np.percentile(rng.beta(10.5, 40.5, 400_000), [2.5, 97.5])
    assert (found.false_positive.low, found.false_positive.high) == pytest.approx(
        expected, abs=0.01
    )


def test_no_error_seen_is_not_no_error():
    found = judge_error(asked(50, 0, 0, 50, 100, 900))
    assert found.false_positive.value == found.false_negative.value == 0
    assert 0 < found.false_positive.high < 0.02
    assert 0.02 < found.false_negative.high < 0.6


def test_a_judge_that_never_fires_has_no_false_positives():
    found = judge_error(asked(0, 0, 5, 45, 0, 1000))
    assert found.false_positive.value == 0
    assert found.false_negative.value == 1
    calm = judge_error(asked(0, 0, 0, 50, 0, 1000))
    assert math.isnan(calm.false_negative.value)


def test_intervals_cover_the_truth():
    """800 pictures, 15% with the concept; the judge misses a quarter and invents 5%."""
    rng = np.random.default_rng(11)
    held = np.zeros(2)
    for repeat in range(150):
        there = rng.random(800) < 0.15
        flags = np.where(there, rng.random(800) >= 0.25, rng.random(800) < 0.05)
        sizes = {True: int(flags.sum()), False: int((~flags).sum())}
        rows = [
            Question(picture=str(i), sha256="", rule="r", flagged=bool(flags[i]),
                     of=sizes[bool(flags[i])], answer="yes" if there[i] else "no")
            for i in choose(flags, 120, seed=repeat)
        ]  # fmt: skip
        found = judge_error(rows, draws=1500)
        held += [
            found.false_positive.low <= 0.05 <= found.false_positive.high,
            found.false_negative.low <= 0.25 <= found.false_negative.high,
        ]
    assert (held / 150 >= 0.89).all()


def test_unsure_and_open_answers_are_counted_apart():
    rows = asked(10, 0, 0, 10, 20, 80)
    rows += [replace(rows[0], answer="unsure"), replace(rows[-1], answer="")]
    found = judge_error(rows)
    assert (found.answered, found.unsure, found.left) == (20, 1, 1)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [replace(q, answer="unsure") for q in asked(2, 0, 0, 2, 9, 9)],
        [*asked(2, 0, 0, 2, 9, 9), replace(asked(1, 0, 0, 0, 9, 9)[0], rule="other")],
        [*asked(2, 0, 0, 0, 9, 9), *asked(2, 0, 0, 0, 10, 9)],
        asked(5, 0, 0, 2, 3, 9),
    ],
)
def test_answers_that_do_not_fit_together_are_refused(rows):
    with pytest.raises(PicturesError):
        judge_error(rows)


# The page and the table


@pytest.fixture
def page(raw):
    rows = questions(raw, verdicts(raw, RED), RED.name, 10, seed=3)
    return rows, check_html(rows, "red <b> & co")


def test_flagged_pictures_are_blurred_until_clicked(page):
    rows, text = page
    flagged = sum(q.flagged for q in rows)
    assert flagged == 5
    assert text.count('<label class="veil">') == flagged
    assert text.count("data:image/png;base64,") == 10
    assert text.count('type="radio"') == 30
    assert "red &lt;b&gt; &amp; co" in text
    assert "filter: blur" in text


def test_the_page_runs_one_script_and_reaches_for_nothing(page):
    _, text = page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert not re.search(r"\son\w+=", text)


def test_the_rows_in_the_page_are_those_of_the_table(page, tmp_path):
    rows, text = page
    found = re.search(r'id="rows">(.*?)</script>', text, re.DOTALL)[1]
    (tmp_path / "answers.json").write_text(found)
    (tmp_path / "answers.csv").write_text(answers_csv(rows))
    assert read_answers(tmp_path / "answers.json") == rows
    assert read_answers(tmp_path / "answers.csv") == rows


@pytest.mark.skipif(not shutil.which("node"), reason="runs the page's script where node is")
def test_the_pages_script_collects_the_answers(page, tmp_path):
    rows, text = page
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    data = re.search(r'id="rows">(.*?)</script>', text, re.DOTALL)[1]
    stage = """
    const heard = {}, saved = [];
    const count = {}, save = {addEventListener: (kind, f) => { heard.save = f; }};
    const parts = {rows: {textContent: DATA}, count, save};
    globalThis.document = {
      getElementById: (id) => parts[id],
      addEventListener: (kind, f) => { heard[kind] = f; },
      createElement: () => ({click() { saved.push(this.download); }}),
    };
    globalThis.Blob = class { constructor(texts) { saved.push(texts[0]); } };
    globalThis.URL = {createObjectURL: () => "blob:x", revokeObjectURL: () => {}};
    """.replace("DATA", json.dumps(data))
    act = """
    const first = count.textContent;
    heard.change({target: {type: "checkbox", name: "a0", value: "on"}});
    heard.change({target: {type: "radio", name: "a2", value: "no"}});
    heard.change({target: {type: "radio", name: "a2", value: "yes"}});
    heard.change({target: {type: "radio", name: "a9", value: "unsure"}});
    heard.save();
    process.stdout.write(JSON.stringify([first, count.textContent, ...saved]));
    """
    (tmp_path / "page.js").write_text(stage + "\n{" + script + "\n" + act + "}")
    done = subprocess.run(
        ["node", tmp_path / "page.js"], capture_output=True, text=True, check=True, timeout=60
    )
    first, last, answers, name = json.loads(done.stdout)
    assert (first, last) == ("0 of 10 answered", "2 of 10 answered")
    assert name == "answers.json"
    (tmp_path / name).write_text(answers)
    expected = list(rows)
    expected[2] = replace(rows[2], answer="yes")
    expected[9] = replace(rows[9], answer="unsure")
    assert read_answers(tmp_path / name) == expected


def test_both_files_are_written(raw, tmp_path):
    rows = questions(raw, verdicts(raw, RED), RED.name, 6)
    page, table = write_check(tmp_path / "out", rows)
    assert page.read_text().startswith("<!doctype html>")
    assert [r["answer"] for r in csv.DictReader(io.StringIO(table.read_text()))] == [""] * 6


def test_a_picture_that_changed_is_not_shown(raw, tmp_path):
    rows = questions(raw, verdicts(raw, RED), RED.name, 20)
    write_png(tmp_path / "003.png", np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(PicturesError, match=r"003\.png: is another picture than was judged"):
        check_html(rows)
    (tmp_path / "003.png").unlink()
    with pytest.raises(PicturesError, match=r"003\.png: cannot be read any more"):
        check_html(rows)


def test_a_table_from_a_spreadsheet_is_read(tmp_path):
    path = tmp_path / "answers.csv"
    rows = asked(1, 1, 1, 1, 5, 5)
    text = answers_csv(rows).replace(",no\n", ", No\n")
    path.write_text("\ufeff" + text.replace(",", ";"))
    assert read_answers(path) == rows


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.replace(",yes,5,", ",maybe,5,"), "flagged 'maybe'"),
        (lambda t: t.replace(",5,yes", ",5,perhaps"), "answer 'perhaps'"),
        (lambda t: t.replace("answer", "verdict"), "no column 'answer'"),
        (lambda t: t.replace(",5,", ",x,"), "invalid literal"),
        (lambda t: t.replace(",5,", ",0,"), "of is 0"),
        (lambda t: '["a"]', "is not an answers file"),
        (lambda t: "[" * 100_000, "is not an answers file"),
    ],
)
def test_a_table_that_was_changed_otherwise_is_refused(tmp_path, edit, message):
    path = tmp_path / "answers.csv"
    path.write_text(edit(answers_csv(asked(1, 1, 1, 1, 5, 5))))
    with pytest.raises(PicturesError, match=message):
        read_answers(path)
