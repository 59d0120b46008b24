"""`ine compare`: the frontier's drawing, the table of methods, the report, the command."""

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
import torch

import ine.cli
import ine.evaluation.run as engine
from ine.calibration.check import provenance
from ine.calibration.features import noised_features
from ine.detectors.features import PictureFeatures
from ine.embeddings.embedding import new_embedding, write_embedding
from ine.errors import EmbeddingError, IneError, PromptError, RecipeError
from ine.evaluation import readings
from ine.evaluation.grid import GridModel
from ine.evaluation.stats import Estimate
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gate_file import Calibration, write_calibration
from ine.guidance.negative import Negative
from ine.guidance.probe import Probe, ProbeGate
from ine.guidance.table import METHODS, describe
from ine.models.loading import load_parts
from ine.recipe import load_recipe
from ine.report.frontier import DARK, LIGHT, Curve, Point, frontier_svg
from ine.report.page import write_report
from ine.report.values import Drawing, Report, Section
from ine.sampling import SamplerSettings
from ine.studies.cases import set_cases
from ine.studies.compare import check, read_strengths, run_compare, run_grids, steers_nothing
from ine.studies.compare_page import picture_grid
from ine.studies.comparison import Choice, Comparison, entries_of

SVG = "{http://www.w3.org/2000/svg}"
NASTY = '<b onload="x">&'
FAST = SamplerSettings(steps=1, guidance_scale=5.0, batch=16)


def estimate(value):
    return Estimate(value, value - 0.1, value + 0.1, 48, 12)


def curve(name, *pairs, **kwargs):
    points = [
        Point(label=str(n), kept=estimate(kept), left=estimate(left))
        for n, (kept, left) in enumerate(pairs)
    ]
    return Curve(name=name, points=tuple(points), **kwargs)


CURVES = [
    curve("additive, words", (1.0, 0.4), (0.95, 0.35), (0.8, 0.3), colour=1, hollow=True),
    curve(f"additive, {NASTY}", (1.0, 0.4), (0.97, 0.05), (0.9, 0.0), colour=1),
    curve("cfg, words", (0.99, 0.3), hollow=True),
]


def drawn(**kwargs):
    return ElementTree.fromstring(frontier_svg(CURVES, estimate(0.41), "fire", **kwargs))


# --- the frontier -------------------------------------------------------------------------------


def test_the_drawing_is_well_formed_and_names_everything():
    root = drawn()
    assert root.tag == f"{SVG}svg"
    texts = [e.text for e in root.iter(f"{SVG}text")]
    for words in ("preservation of benign pictures", "share of pictures with fire"):
        assert words in texts
    assert {c.name for c in CURVES} <= set(texts)
    assert "undefended 0.41" in texts
    assert root.get("role") == "img"
    about = {e.get("id"): e.text for e in root.iter() if e.get("id")}
    assert root.get("aria-labelledby").split() == list(about)
    assert "Share with fire" in about["frontier-title"]
    # The figures can be heard too.
    assert f"additive, {NASTY}, 1: 0.05 left, 0.97 preserved." in about["frontier-desc"]


def test_long_names_have_room_beside_the_plot():
    def width(name):
        root = ElementTree.fromstring(frontier_svg([curve(name, (0.9, 0.1))]))
        return float(root.get("viewBox").split()[2])

    assert width("cfg, words") == 760
    assert width("additive-strong, embedding (3 pooled)") > 500 + 60 + 37 * 7


def test_points_lie_where_their_figures_say():
    lines = [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        for line in drawn().iter(f"{SVG}polyline")
    ]
    assert [len(line) for line in lines] == [3, 3, 1]
    points = [p for line in lines for p in line]
    figures = [(p.kept.value, p.left.value) for c in CURVES for p in c.points]
    for axis, sign in ((0, 1), (1, -1)):  # more is kept to the right, more is left further up
        scale = np.polyfit([f[axis] for f in figures], [p[axis] for p in points], 1)
        fitted = np.polyval(scale, [f[axis] for f in figures])
        assert np.sign(scale[0]) == sign
        assert np.abs(fitted - [p[axis] for p in points]).max() < 0.1
    assert all(62 <= x <= 500 and 22 <= y <= 372 for x, y in points)


def test_words_are_dashed_and_hollow_and_each_method_has_a_shape():
    root = drawn()
    lines = list(root.iter(f"{SVG}polyline"))
    assert ["dashed" in line.get("class") for line in lines] == [True, False, True]
    marks = [e for e in root.iter(f"{SVG}path") if e.get("class") == "mark"]
    assert len(marks) == 7 + 3  # the points and the legend
    hollow = ["var(--back)" in e.get("style") for e in marks[:7]]
    assert hollow == [True] * 3 + [False] * 3 + [True]
    assert len({e.get("d") for e in marks}) == 2


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize(("colours", "paper"), [(LIGHT, "#ffffff"), (DARK, "#15171a")])
def test_colours_can_be_seen_on_their_paper(colours, paper):
    for colour in colours:
        low, high = sorted((luminance(colour), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour
    style = "".join(e.text for e in drawn().iter(f"{SVG}style"))
    assert all(colour in style for colour in colours)
    assert "prefers-color-scheme:dark" in style


def test_a_drawing_needs_points_that_are_numbers():
    for curves in ([], [curve("x", (math.nan, 0.1))]):
        with pytest.raises(ValueError, match="not all finite"):
            frontier_svg(curves)
    ElementTree.fromstring(frontier_svg([curve("x", (-0.4, 0.0))]))
    ElementTree.fromstring(frontier_svg([curve("x", (1.0, 1.0))] * 20))


def test_a_report_holds_the_drawing(tmp_path):
    svg = frontier_svg(CURVES, estimate(0.41), "fire")
    section = Section("S", drawings=[Drawing(f"Title {NASTY}", "Caption", svg)])
    page = write_report(Report("R", "", [section], {}), tmp_path).read_text()
    assert svg in page
    assert NASTY not in page
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["sections"][0]["drawings"] == [{"title": f"Title {NASTY}", "caption": "Caption"}]
    assert "The drawing is in report.html." in (tmp_path / "report.md").read_text()


# --- methods and strengths ----------------------------------------------------------------------


def test_strengths_are_read_for_all_methods_or_for_one():
    methods = ("cfg", "additive", "sld")
    assert read_strengths((), methods) == {}
    both = {"additive": (1.0, 2.5), "sld": (1.0, 2.5)}
    assert read_strengths(("2.5,1,1",), methods) == both
    assert read_strengths(("1,2.5", "sld=9"), methods) == {**both, "sld": (9.0,)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("aditive=1", "did you mean 'additive'"),
        ("cfg=1", "cfg has no strength"),
        ("sld=1", "sld is not compared"),
        ("1,two", "give numbers of 0 or more"),
        ("-1", "give numbers of 0 or more"),
        ("nan", "give numbers of 0 or more"),
        ("", "give numbers of 0 or more"),
    ],
)
def test_wrong_strengths_are_refused(text, words):
    with pytest.raises(IneError, match=words):
        read_strengths((text,), ("cfg", "additive"))


def test_pictures_are_shown_at_the_strength_nearest_to_the_recipes():
    recipe = load_recipe("fire")
    additive = METHODS["additive"]
    assert recipe.strength == 3.0
    assert Choice().shown(additive, recipe) == 3.0
    assert Choice(strengths={"additive": (1.0, 2.0, 9.0)}).shown(additive, recipe) == 2.0
    assert Choice().shown(METHODS["cfg"], recipe) is None


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_is_built_and_its_settings_name_its_cells(method):
    words, other = Negative("fire"), Negative("flames")
    strengths = method.strengths or (None,)
    observer = {"observer": "judge:mini-judge", "concept": "fire"}
    more = observer if method.kind.looks_itself else {}
    keys = {describe(method.at(words, s, more)) for s in strengths}
    assert len(keys) == len(strengths)
    assert describe(method.at(other, strengths[0], more)) not in keys
    embeddings = [new_embedding(torch.full((2, 4), v), "fire-neg", "fire") for v in (0.1, 0.2)]
    assert (
        len({describe(method.at(Negative("", (e,)), strengths[0], more)) for e in embeddings}) == 2
    )


def test_identities_differ_between_methods():
    negative = Negative("fire")
    assert describe(ClassifierFree(negative)) != describe(Additive(negative, 5.0))
    assert describe(None) == "None"


def test_several_embeddings_are_joined():
    one, two = (new_embedding(torch.ones(2, 4), f"neg-{x}", "weapon") for x in "ab")
    methods = [METHODS["cfg"]]
    assert [e.label for e in entries_of([one], methods)] == ["words", "embedding"]
    found = entries_of([one, two], methods)
    assert [e.label for e in found] == ["words", "2 embeddings joined"]
    assert [e.in_words for e in found] == [True, False]


# --- prompts and judges ------------------------------------------------------------------------


def test_sets_come_from_the_recipe_or_are_given():
    recipe = load_recipe("fire")
    cases = set_cases(recipe, "benign", 6, seed=3)
    assert len({c.noun for c in cases}) == 6
    assert cases != set_cases(recipe, "benign", 6, seed=4)
    given = set_cases(recipe, ("a dog", "a cat"), 4, seed=0)
    assert sorted(c.prompt for c in given) == ["a cat", "a cat", "a dog", "a dog"]
    assert len({c.seed for c in given}) == 4
    assert {c.noun for c in given} == {"a dog", "a cat"}
    with pytest.raises(RecipeError, match="did you mean 'benign'"):
        set_cases(recipe, "begnin", 4, 0)


def test_recipes_without_the_set_lend_their_tuning_prompts_and_nouns():
    recipe = load_recipe("nudity")
    assert "implying_tuning" not in recipe.prompt_sets
    assert any("bathtub" in c.prompt for c in set_cases(recipe, "implying_tuning", 8, 0))
    assert all(c.noun in recipe.tuning.nouns for c in set_cases(recipe, "benign", 8, 0))


def test_a_detector_without_features_lends_those_of_small_pictures():
    look = PictureFeatures(lambda pictures: [{"thing": 0.1} for _ in pictures])
    assert look.measure == "pixel-cosine@16"
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    pictures[2] = 7
    features = look.features(pictures)
    assert np.allclose((features**2).sum(1), 1, atol=1e-5)
    shifted = look.features(np.roll(pictures, 20, axis=2))
    assert (features * shifted).sum(1)[0] < 0.9 < (features * features).sum(1)[0]
    with_features = type("Judge", (), {"features": lambda self, p: "its own"})()
    assert PictureFeatures(with_features).measure == "judge-cosine"
    assert PictureFeatures(with_features).features(pictures) == "its own"


# --- the whole, on the bundled model ------------------------------------------------------------


class Judge:
    """Finds fire in the first half of every batch; features are small pictures."""

    def __call__(self, pictures):
        half = len(pictures) // 2
        return [{"fire": 0.9 if i < half else 0.2} for i in range(len(pictures))]


@pytest.fixture(scope="module")
def mini():
    return load_parts("mini")


@pytest.fixture(scope="module")
def embedding(mini):
    width = mini.text_encoders[0].get_input_embeddings().weight.shape[1]
    vectors = 0.1 * torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    return new_embedding(vectors, "fire-neg", "fire", {"ine.base": "mini"})


@pytest.fixture
def judge(monkeypatch):
    """Let `Judge` look, which has no features of its own."""
    monkeypatch.setattr(readings, "load_detector", lambda name: Judge())
    monkeypatch.setattr("ine.studies.grids.has_features", lambda name: False)


@pytest.fixture
def file(embedding, tmp_path_factory):
    path = tmp_path_factory.mktemp("neg") / "fire-neg.safetensors"
    write_embedding(embedding, path)
    return path


def comparison(mini, recipe, files, choice, folder, gate=None):
    found = Comparison(
        parts=mini,
        model=GridModel(name="model", model="mini"),
        recipe=recipe,
        files=files,
        choice=choice,
        sampler=FAST,
        folder=folder,
        gate=gate,
    )
    check(found)
    return found


def prepared(mini, file, folder, gate=None, **choice):
    fields = {"methods": ("cfg", "additive"), "strengths": {"additive": (2.0,)}, "count": 4}
    return comparison(mini, load_recipe("fire"), (file,), Choice(**fields | choice), folder, gate)


def test_rows_are_prompts_and_columns_are_methods(mini, judge, file, tmp_path):
    found = prepared(mini, file, tmp_path, prompts=("a dog", "a cat in the volcano"))
    grid = picture_grid(found, run_grids(found)[0])
    assert [label for label, _ in grid.rows] == ["a dog", "a cat in the volcano"]
    assert grid.column_labels == [
        "undefended",
        "cfg, words",
        "cfg, embedding",
        "additive s=2, words",
        "additive s=2, embedding",
    ]
    dog, cat = ([cell.note for cell in cells] for _, cells in grid.rows)
    assert dog == ["fire .90, 2 calls"] * 3 + ["fire .90, 3 calls"] * 2
    assert cat[0] == "fire .20, 2 calls"
    assert [c.flagged for _, cells in grid.rows for c in cells] == [True] * 5 + [False] * 5
    pictures = [c.picture for _, cells in grid.rows for c in cells]
    assert len({p.tobytes() for p in pictures}) == 10


def test_the_report_is_complete_and_flagged_pictures_are_blurred(
    mini, judge, file, tmp_path, monkeypatch
):
    counts = []
    found = prepared(mini, file, tmp_path)
    path, table = run_compare(found, on_picture=counts.append)
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, found.total())
    page = path.read_text()
    assert page.count('<label class="veil"><input type="checkbox"') == 4 * 5
    assert page.count("<img ") == 8 * 5
    assert '<svg class="frontier"' in page
    figures = json.loads((tmp_path / "report.json").read_text())
    pictures, frontier = figures["sections"]
    assert len(pictures["grids"][0]["rows"]) == 8
    (data,) = frontier["tables"]
    assert [row[:2] for row in data["rows"]] == [
        ["undefended", ""],
        ["cfg, words", ""],
        ["cfg, embedding", ""],
        ["additive, words", "2"],
        ["additive, embedding", "2"],
    ]
    assert [row[4] for row in data["rows"]] == ["2", "2", "2", "3", "3"]
    left, kept = data["rows"][4][2:4]
    assert (left["value"], left["count"]) == (0.5, 4)
    assert left["low"] < 0.5 < left["high"]
    assert kept["value"] < 1
    assert "pixel-cosine@16" in " ".join(data["notes"])
    assert "Undefended, .50 of the pictures" in figures["lead"]
    assert figures["provenance"]["words"] == load_recipe("fire").words.negative_text()
    assert table.columns == data["columns"]

    # A second time no picture is made; without blur nothing is veiled.
    monkeypatch.setattr(engine, "make_unit", None)
    path, _ = run_compare(found, blur="show")
    assert 'class="veil"' not in path.read_text()
    assert json.loads((tmp_path / "report.json").read_text()) == figures


def test_recipes_about_people_hide_what_is_flagged(mini, judge, file, tmp_path):
    recipe = load_recipe("fire").model_copy(update={"people": True})
    choice = Choice(methods=("cfg",), prompts=("a dog", "a cat"), count=2)
    found = comparison(mini, recipe, (file,), choice, tmp_path)
    page = run_compare(found)[0].read_text()
    assert "only as a coarse mosaic" in page
    assert 'class="veil"' not in page


def test_what_cannot_be_compared_is_said_first(mini, file, tmp_path, tmp_path_factory):
    recipe = load_recipe("fire")

    def prepare(files=(file,), **choice):
        return comparison(mini, recipe, files, Choice(**choice), tmp_path)

    other = new_embedding(torch.ones(2, 768), "fire-neg", "fire")
    wide = tmp_path_factory.mktemp("wide") / "fire-neg.safetensors"
    write_embedding(other, wide)

    with pytest.raises(EmbeddingError, match="give --negative-embedding"):
        prepare(())
    with pytest.raises(EmbeddingError, match="was made for"):
        prepare((wide,))
    with pytest.raises(IneError, match="did you mean 'additive'"):
        prepare(methods=("aditive",))
    with pytest.raises(RecipeError, match="no prompt set 'implied'"):
        prepare(implying="implied")
    with pytest.raises(PromptError, match="all are alike"):
        prepare(benign=("a dog",))
    assert not list(tmp_path.iterdir())


def test_an_embedding_that_is_the_empty_prompt_is_pointed_out(mini, embedding, tmp_path, caplog):
    tokenizer = mini.tokenizers[0]
    table = mini.text_encoders[0].get_input_embeddings().weight.detach()
    padding = table[[tokenizer.eos_token_id, tokenizer.pad_token_id]]
    nothing = new_embedding(padding, "nil-neg", "nothing")
    assert steers_nothing(Negative("", (nothing,)), mini) == torch.equal(*padding)
    assert not steers_nothing(Negative("", (embedding,)), mini)
    assert steers_nothing(Negative(""), mini)


# --- the command --------------------------------------------------------------------------------


def test_with_a_gate_what_restarts_stands_beside_what_does_not(
    mini, judge, embedding, file, tmp_path, beginning_with
):
    width = noised_features(
        mini, torch.zeros(1, *mini.latent_shape), 500.0, 0.5, torch.Generator()
    ).shape[1]
    gate = ProbeGate(-1.0, (Probe(torch.zeros(width), 0.0),), (0.5,), "fire")
    record = provenance(mini, [embedding])
    paths = {}
    for name, threshold in (("always", -1.0), ("never", 1.0)):
        paths[name] = tmp_path / f"{name}.gate.json"
        closed = Calibration(gate=replace(gate, threshold=threshold), record=record)
        write_calibration(closed, paths[name])

    def shown(gate, strength, name="seen"):
        """Return the entries, and the pictures of the last one, its plain twin and undefended."""
        given = {"strengths": {"additive": (strength,)}, "prompts": ("a dog", "a cat"), "count": 2}
        found = prepared(mini, file, tmp_path / f"{name}-{strength}", paths[gate], **given)
        sheet = run_grids(found)[0]
        rows = [sheet.row(e.guidance, found.shown(e), e.negative) for e in found.entries[-2:]]
        return found, [np.stack(sheet.pictures(r, "shown", 2)) for r in (*rows[::-1], sheet.row())]

    found, (always, _, plain) = shown("always", 2.0)
    assert [(e.method.name, e.label, e.restarts) for e in found.entries] == [
        ("cfg", "words", False),
        ("cfg", "embedding", False),
        ("additive", "words", False),
        ("additive", "words, restarted", True),
        ("additive", "embedding", False),
        ("additive", "embedding, restarted", True),
    ]
    _, (never, _, same) = shown("never", 2.0)
    # Opened in every attempt: what is left is the last of the ladder, from the third noise.
    with beginning_with(2):
        _, (_, steered, _) = shown("never", 2.0, "mirrored")
    assert np.array_equal(always, steered)
    assert np.array_equal(plain, never)
    assert np.array_equal(plain, same)
    assert not np.array_equal(always, never)


@pytest.fixture
def command(run_ine, monkeypatch, embedding, tmp_path):
    monkeypatch.setitem(ine.cli.COMMANDS, "compare", ("ine.cli.compare", "compare", "Compare."))
    monkeypatch.chdir(tmp_path)
    write_embedding(embedding, tmp_path / "fire-neg.safetensors")

    def run(*args):
        return run_ine(
            "compare", "--concept", "fire", "--negative-embedding", "fire-neg.safetensors", *args
        )

    return run


def test_the_command_writes_a_report(command, tmp_path):
    (tmp_path / "benign.txt").write_text("a dog\na cat\na car\n")
    small = ("--count", 3, "--steps", 1, "--guidance", "cfg", "--guidance", "additive")
    done = command(
        *(*small, "--strengths", "2", "--prompt", "a dog in the volcano"),
        *("--benign", "benign.txt", "--out", "seen", "--json"),
    )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["report"] == "seen/report.html"
    assert (tmp_path / "seen" / "report.html").is_file()
    (grid,) = found["sections"][0]["grids"]
    assert [row["label"] for row in grid["rows"]] == ["a dog in the volcano"]
    (table,) = found["sections"][1]["tables"]
    assert "those of 3 prompts given" in table["caption"]
    assert "judge-cosine" in " ".join(table["notes"])
    assert "the base model is compared" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--guidance", "aditive"), 1, "did you mean 'additive'"),
        (("--strengths", "safre=1"), 1, "did you mean 'safree'"),
        (("--benign", "begnin"), 3, "did you mean 'benign'"),
        (("--prompt", ""), 8, "a prompt is empty"),
        (("--count", "1"), 2, "1 is not in the range"),
        (("--negative-embedding", "none.safetensors"), 6, "no such file"),
    ],
)
def test_mistakes_are_explained(command, tmp_path, args, code, words):
    done = command(*args)
    assert done.exit_code == code, done.output
    assert words in done.stderr
    assert not (tmp_path / "ine-compare").exists()


def test_the_command_module_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, ine.cli.compare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
