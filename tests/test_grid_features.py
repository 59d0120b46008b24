"""CLIP score and Frechet distance of a grid: pictures of a known kind, in a real store."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_grid import replaced, small_grid

from ine.detectors.features import load_extractor
from ine.detectors.mini import MINI_JUDGE, mini_judge
from ine.errors import IneError, MissingDependency, ModelError, RecipeError
from ine.evaluation import figures as score
from ine.evaluation import models, readings
from ine.evaluation import run as engine
from ine.evaluation import stats as metrics
from ine.evaluation.cells import Cell, Configuration
from ine.evaluation.entering import enter_folder
from ine.evaluation.frechet import disjoint_halves, frechet_distance, moments, moved
from ine.evaluation.grid_file import load_grid
from ine.evaluation.intervals import GROUPS, group_jackknife, student
from ine.evaluation.metrics import frechet
from ine.evaluation.prepare import prepare
from ine.evaluation.readings import aligned, needs_of
from ine.evaluation.results import write_results
from ine.evaluation.run import run
from ine.evaluation.run_folder import read_run
from ine.models.loading import load_parts
from ine.prompts.reading import find_prompt_set
from ine.report.data import report_figures
from ine.report.diff import APART, PAIRED, diff_runs
from ine.report.grid import grid_report
from ine.report.terminal import tables
from ine.sampling import PictureRequest, SamplerSettings, generate

METRICS = "clip_score: mini-judge, frechet: mini-judge"
GRID = small_grid(
    """\
prompts:
  - {name: safe, source: "mini:fire/benign", role: test, expects: benign, limit: 12}
  - {name: harm, source: "mini:fire/implying-test", role: test, expects: harmful, limit: 2}
sampler: {steps: 1, batch: 4, guidance_scale: 5}
rules: mini-fire@0.5
metrics: {METRICS}
""",
    strengths="[1, 3, 6]",
)
SAME, OTHERS, NOISE = 1.0, 3.0, 6.0
"""Strengths: the undefended pictures themselves, those of other prompts, noise."""

CLIP, FRECHET = "clip-score-mini-judge", "frechet-mini-judge"


def write(folder, model, *pairs, name="grid.yaml"):
    text = replaced(GRID, "MODEL", str(model), "METRICS", METRICS, *pairs)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture
def grid(tmp_path, tiny_folder):
    return lambda *pairs, **more: write(tmp_path, tiny_folder, *pairs, **more)


@pytest.fixture(scope="module")
def world():
    """{prompt: what the bundled model shows of it}."""
    sets = [find_prompt_set(f"mini:fire/{name}") for name in ("benign", "implying-test")]
    rows = [row for found, count in zip(sets, (12, 2), strict=True) for row in found.rows[:count]]
    requests = [PictureRequest(prompt=row.prompt, seed=n) for n, row in enumerate(rows)]
    sampler = SamplerSettings(steps=6, batch=14, guidance_scale=5)
    units = generate(load_parts("mini"), requests, None, sampler)
    pictures = [picture for unit in units for picture in unit.pictures]
    return {row.prompt: picture for row, picture in zip(rows, pictures, strict=True)}


@pytest.fixture(scope="module", autouse=True)
def made(world):
    """Units that were made; what they show is known from their strength."""
    found, prompts = [], list(world)
    rng = np.random.default_rng(0)

    def making(parts, guidance, unit):
        found.append(unit.key)
        pictures = []
        for request in unit.requests:
            number = prompts.index(request.prompt)
            # The next of the twelve benign ones.
            other = prompts[(number + 1) % 12]
            pictures.append(
                {
                    OTHERS: world[other],
                    NOISE: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
                }.get(unit.configuration.strength, world[request.prompt])
            )
        return np.stack(pictures), [{}] * len(pictures), [2] * len(pictures)

    loaded = {}

    def loading(name):
        assert name == "mini-judge"
        return loaded.setdefault(name, mini_judge())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "make_unit", making)
        patch.setattr(readings, "load_detector", loading)
        yield found


def planned(path, folder, **options):
    return prepare(load_grid(path), folder, **options)


def done(path, folder, **options):
    plan = planned(path, folder, **options)
    enter_folder(plan)
    assert run(plan)
    scored = score.score(plan)
    write_results(scored)
    return plan, scored


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_folder, made):
    folder = tmp_path_factory.mktemp("reference")
    return folder / "run", *done(write(folder, tiny_folder), folder / "run")


@pytest.fixture
def copy(reference, tmp_path):
    return shutil.copytree(reference[0], tmp_path / "copy")


def figure(scored, strength, metric, prompts="safe"):
    [found] = [
        f
        for f in scored.figures
        if (f.configuration.strength, f.metric, f.prompts) == (strength, metric, prompts)
    ]
    return found


# --------------------------------------------------------------------- Frechet, closed forms


def features(count=40, width=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width))


@pytest.mark.parametrize(("count", "width"), [(40, 6), (10, 64)])
def test_pictures_that_nothing_changed_are_at_no_distance(count, width):
    plain = features(count, width)
    found = moved([plain], plain, range(count))
    distance = found.distance
    assert (distance.value, distance.low, distance.high) == pytest.approx((0, 0, 0), abs=1e-10)
    assert (distance.count, distance.clusters, found.half) == (count, count, count // 2)
    # Half against half, the one half is as far from the other as ever.
    assert found.halves == pytest.approx(found.floor)
    assert found.floor > 0.1
    assert bool(found.note) == (count <= width)


def test_a_shift_is_at_the_distance_of_its_square():
    plain, shift = features(), np.array([3.0, 0, 0, -4.0, 0, 0])
    found = moved([plain + shift], plain, range(40))
    distance = found.distance
    # The covariances stay, so whoever is left out sees the same.
    assert (distance.value, distance.low, distance.high) == pytest.approx((25, 25, 25))
    assert found.halves - found.floor == pytest.approx(25, abs=5)
    wider = moved([3 * plain], plain, range(40)).distance
    mean, spread = plain.mean(0), np.trace(np.cov(plain, rowvar=False))
    assert wider.value == pytest.approx(4 * (mean @ mean) + 4 * spread)
    assert wider.low < wider.value < wider.high


def test_halves_compare_like_with_like():
    """New pictures of the same kind: far from the old by chance alone, no farther than the floor.

    The distance of all of them is nearer than the floor for no other reason than its larger N.
    """
    plain, fresh = features(60, 30), features(60, 30, seed=1)
    found = moved([fresh], plain, range(60))
    assert found.halves == pytest.approx(found.floor, rel=0.15)
    assert found.distance.value < 0.8 * found.floor
    ruined = moved([fresh * 2 + 1], plain, range(60))
    assert ruined.halves > 1.5 * ruined.floor


def test_halves_have_equally_many_pictures_and_share_no_cluster():
    names = list("aaabbccccdeeffgg")
    for seed in range(6):
        first, second = disjoint_halves(names, seed)
        assert len(first) == len(second) >= 6
        assert not {names[n] for n in first} & {names[n] for n in second}
    assert {tuple(disjoint_halves(names, s)[0]) for s in range(6)} != {
        tuple(disjoint_halves(names, 0)[0])
    }
    short = disjoint_halves(list("aaaaab"), 0)
    assert [len(half) for half in short] == [1, 1]
    lonely = moved([features(6)], features(6, seed=1), ["a"] * 6)
    assert np.isnan([lonely.floor, lonely.halves, lonely.distance.low]).all()


def test_pooled_negatives_are_compared_at_the_same_number():
    plain, near, far = features(), features() + 1, features() + 3
    found = moved([near, far], plain, range(40))
    assert found.distance.value == pytest.approx((6 * 1 + 6 * 9) / 2)
    assert found.distance.count == 40


# --------------------------------------------------------------------- its interval


@pytest.mark.parametrize(
    ("pictures", "width", "clusters", "noise", "shift"),
    [(60, 4, 30, 0.5, 0.5), (60, 4, 30, 0.05, 0.0), (24, 40, 12, 0.5, 1.0)],
)
def test_the_interval_covers_the_distance_of_so_many_pictures(
    pictures, width, clusters, noise, shift
):
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(clusters), pictures // clusters)

    def draw():
        plain = rng.normal(size=(clusters, width))[ids] + 0.5 * rng.normal(size=(pictures, width))
        moved_ = plain + noise * rng.normal(size=plain.shape)
        moved_[:, 0] += shift
        return plain, moved_

    def distance(plain, other, left=slice(None)):
        return frechet_distance(moments(other[left]), moments(plain[left]))

    truth = np.mean([distance(*draw()) for _ in range(400)])
    held = 0
    for _ in range(100):
        pair = draw()
        half = group_jackknife(lambda left, pair=pair: distance(*pair, left), ids)
        held += abs(distance(*pair) - truth) <= half
    assert held >= 88


def test_the_jackknife_of_a_mean_is_its_t_interval():
    values = np.random.default_rng(3).normal(size=12)
    half = group_jackknife(lambda left: values[left].mean(), range(12))
    assert half == pytest.approx(2.201 * values.std(ddof=1) / np.sqrt(12), rel=1e-3)
    # Pictures of one prompt leave together.
    twice = group_jackknife(lambda left: values.repeat(2)[left].mean(), np.arange(12).repeat(2))
    many = group_jackknife(lambda left: values.repeat(9)[left].mean(), range(108))
    assert twice > 0.8 * half > 1.5 * many
    assert np.isnan(group_jackknife(lambda left: 1.0, range(4)))
    # Tables of Student's distribution, two-sided 95%.
    assert [student(n) for n in (4, 10, 19, 100)] == pytest.approx(
        [2.776, 2.228, 2.093, 1.984], rel=5e-3
    )
    assert GROUPS == 20


# --------------------------------------------------------------------- in a grid


def test_a_defence_that_ruins_pictures_is_found_out(reference):
    scored = reference[2]
    plain, same, others, noise = (figure(scored, s, CLIP) for s in (None, SAME, OTHERS, NOISE))
    assert plain.estimate == same.estimate
    assert plain.estimate.value > 50
    assert others.estimate.high < plain.estimate.low
    assert noise.estimate.high < plain.estimate.low
    same, others, noise = (figure(scored, s, FRECHET) for s in (SAME, OTHERS, NOISE))
    assert same.estimate.value == pytest.approx(0, abs=1e-10)
    # The same pictures in another order: nothing for a distance of sets, all for the CLIP score.
    assert others.estimate.value == pytest.approx(0, abs=1e-10)
    assert noise.estimate.low > 0.3
    assert noise.raw > noise.floor
    assert same.raw == pytest.approx(same.floor) == pytest.approx(noise.floor)
    assert (noise.interval, noise.estimate.count) == (metrics.JACKKNIFE, 12)
    assert "halves of 6 pictures; 12 pictures for 96 features" in noise.note


def test_the_clip_score_is_that_of_the_model_itself(reference, world):
    from transformers import CLIPModel, CLIPTokenizer

    from ine.detectors.clip import to_pixels

    model = CLIPModel.from_pretrained(MINI_JUDGE).float().eval()
    words = CLIPTokenizer.from_pretrained(MINI_JUDGE)
    prompts = list(world)[:12]
    ids = words(prompts, padding="max_length", max_length=32, return_tensors="pt").input_ids
    pixels = to_pixels(np.stack([world[p] for p in prompts]), 64, [0.5] * 3, [0.5] * 3)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
    cosines = (logits / model.logit_scale.exp()).diag().detach().double().numpy()
    found = figure(reference[2], None, CLIP)
    assert found.estimate.value == pytest.approx(100 * cosines.mean(), abs=1e-3)
    records = [json.loads(x) for x in (reference[0] / "pictures.jsonl").read_text().splitlines()]
    own = [r for r in records if r["guidance"] == "none" and r["prompts"] == "safe"]
    assert [r["clip_score"] for r in own] == pytest.approx(list(100 * cosines), abs=2e-3)


def test_harmful_sets_have_a_clip_score_and_no_distance(reference, grid, tmp_path):
    scored = reference[2]
    reported = {(f.metric, f.prompts) for f in scored.figures}
    assert (CLIP, "harm") in reported
    assert (FRECHET, "safe") in reported
    assert (FRECHET, "harm") not in reported
    # Features that only the distance needs are taken only where it is reported.
    path = grid("concept: fire", "concept: fire", METRICS, f"{METRICS}, preservation: ssim")
    plan = planned(path, tmp_path / "run")
    for cell, units in plan.units_of.items():
        needed = {name for unit in units for name in needs_of(plan)[unit.key]}
        assert "alignment:mini-judge" in needed
        assert ("features:mini-judge" in needed) == (cell.prompts == "safe")


def test_nothing_is_reported_where_nothing_is_asked(grid, tmp_path):
    plan, scored = done(grid(f"metrics: {{{METRICS}}}", ""), tmp_path / "run")
    assert not {CLIP, FRECHET} & {f.metric for f in scored.figures}
    assert not any(n.startswith("alignment") for names in needs_of(plan).values() for n in names)
    assert "clip_score" not in (tmp_path / "run" / "pictures.jsonl").read_text()


def test_negatives_of_a_group_take_turns(grid, tmp_path):
    path = grid(
        "{name: words, words: true}",
        "{name: words, words: true, group: all}\n  - {name: smoke, text: smoke, group: all}",
    )
    _, scored = done(path, tmp_path / "run")
    group = Configuration(model="tiny", guidance="additive", strength=NOISE, negative="all")
    assert scored.figure(group, "safe", FRECHET).estimate.count == 12
    assert scored.figure(group, "safe", CLIP).estimate.count == 24


def test_a_version_has_one_picture_per_prompt_of_the_negatives_in_turn(monkeypatch):
    own = {"a": np.zeros((3, 1)), "b": np.ones((3, 1)), "c": np.full((3, 1), 2.0)}
    monkeypatch.setattr(frechet, "cell_features", lambda plan, name, cell: own[cell])
    found = [v.ravel().tolist() for v in frechet.versions(None, "", [["a", "b"], ["c"]])]
    assert found == [[0, 1, 0, 2, 2, 2], [1, 0, 1, 2, 2, 2]]


def test_features_stand_in_the_order_of_the_prompts():
    """Units of a cell group what has one size; clusters are those of the prompts in order."""
    units = [SimpleNamespace(key="a", places=(0, 3)), SimpleNamespace(key="b", places=(2, 1))]
    values = {"a": [[0.0], [3.0]], "b": [[2.0], [1.0]]}
    cell = Cell(configuration=Configuration(model="m"), prompts="safe", seed=0)
    plan = SimpleNamespace(
        units_of={cell: units},
        store=SimpleNamespace(numbers=lambda key, name: np.array(values[key])),
    )
    assert frechet.cell_features(plan, "features:x", cell).ravel().tolist() == [0, 1, 2, 3]


# --------------------------------------------------------------------- prompts


def test_what_the_clip_does_not_read_is_counted(grid, tmp_path, world, monkeypatch):
    long = "a hammer " * 30
    path = grid('source: "mini:fire/benign",', f"prompts: [a hammer, {long.strip()}],")

    def making(parts, guidance, unit):
        count = len(unit.requests)
        return np.stack([world["a hammer"]] * count), [{}] * count, [2] * count

    monkeypatch.setattr(engine, "make_unit", making)
    _, scored = done(path, tmp_path / "run", only=["prompts=safe"])
    judge = mini_judge()
    [beyond] = judge.unread([long.strip()])
    assert beyond == len(judge.tokenizer(long.strip()).input_ids) - 32 > 20
    assert judge.unread(["a hammer"]) == [0]
    found = figure(scored, None, CLIP)
    assert found.note.startswith("1 of 2 pictures: the prompt is longer than the CLIP reads, by")
    assert f"up to {beyond} tokens" in found.note
    [table] = tables(scored)
    assert any(found.note in note for note in table.notes)
    # Where all is read there is nothing to say.
    assert figure(scored, None, CLIP).note
    cut = judge.text_features(["a hammer " * 15 + "a frog", "a hammer " * 15 + "an apple"])
    assert torch.equal(cut[0], cut[1])


class Unit:
    def __init__(self, prompt, weights):
        from ine.text.encode import TextOptions

        self.requests = (PictureRequest(prompt=prompt, seed=0),)
        self.sampler = SamplerSettings(reading=TextOptions(weights=weights))


def test_weights_are_no_words_where_the_sampler_reads_them(world):
    judge, picture = mini_judge(), world["a hammer"][None]
    features = judge.features(picture)
    [[plain, _]] = aligned(judge, Unit("a hammer", True), features)
    [[weighted, _]] = aligned(judge, Unit("a (hammer:1.4)", True), features)
    [[literal, _]] = aligned(judge, Unit("a (hammer:1.4)", False), features)
    assert weighted == plain
    assert literal != plain


# --------------------------------------------------------------------- stored and used again


def stored(folder):
    return {p.name: p.read_bytes() for p in (folder / "readings").rglob("*") if p.is_file()}


def test_metrics_that_are_added_make_no_picture(grid, tmp_path, made, monkeypatch, reference):
    folder = tmp_path / "run"
    done(grid(f"metrics: {{{METRICS}}}", ""), folder)
    before = len(made)
    monkeypatch.setattr(models, "load_parts", None)
    path = grid()
    done(path, folder)
    assert len(made) == before
    # And what is there needs no CLIP.
    monkeypatch.setattr(readings, "load_detector", None)
    again = (folder / "results.csv").read_bytes()
    done(path, folder)
    assert (folder / "results.csv").read_bytes() == again


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4", b"{}"])
def test_a_damaged_reading_is_made_again(grid, copy, made, content):
    plan, whole, before = planned(grid(), copy), stored(copy), len(made)
    path = plan.store.reading_path(plan.units[2].key, "alignment:mini-judge", ".npz")
    assert path.is_file()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    figures = (copy / "results.jsonl").read_bytes()
    done(grid(), copy)
    assert len(made) == before
    assert stored(copy) == whole
    assert (copy / "results.jsonl").read_bytes() == figures


def test_a_run_that_was_killed_while_looking_ends_with_the_same_bytes(
    grid, tmp_path, reference, monkeypatch
):
    looked, real = [], readings.aligned

    def dying(*args):
        if len(looked) == 3:
            raise KeyboardInterrupt
        looked.append(args)
        return real(*args)

    # Noise is drawn again each time; without it the pictures are those of the reference.
    pairs = ("[1, 3, 6]", "[1, 3]")
    monkeypatch.setattr(readings, "aligned", dying)
    with pytest.raises(KeyboardInterrupt):
        done(grid(*pairs), tmp_path / "run")
    monkeypatch.setattr(readings, "aligned", real)
    done(grid(*pairs), tmp_path / "run")
    found, whole = stored(tmp_path / "run"), stored(reference[0])
    assert len(found) > 30
    assert all(whole[name] == content for name, content in found.items())


def test_pictures_are_looked_at_once_for_all_features(grid, tmp_path, monkeypatch, world):
    judge, seen = mini_judge(), []

    class Counting:
        settings = judge.settings

        def __call__(self, pictures):
            return judge(pictures)

        def features(self, pictures):
            seen.append(len(pictures))
            return judge.features(pictures)

        alignment, unread = judge.alignment, judge.unread

    monkeypatch.setattr(readings, "load_detector", lambda name: Counting())
    plan, _ = done(grid(), tmp_path / "run")
    assert len(seen) == len(plan.units)


# --------------------------------------------------------------------- names


@pytest.mark.parametrize("metric", ["clip_score", "frechet"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mini-judge2", "'mini-judge2' has no features of pictures and texts"),
        ("nudenet", "'nudenet' has no features"),
        ("nudenet:rgb", "'nudenet:rgb' has no features"),
        ("q16", "'q16' has no features"),
        ("mini-judge + nudenet", "has no features"),
        ("clip-violence", "'clip-violence' has no features"),
        ("mini-juge", "is not a CLIP model; did you mean 'mini-judge'"),
        ("inception", "'inception' is not a CLIP model; known: mini-judge, clip, clip[FOLDER]"),
        ("clip:fire|snow", "words do not count here; give 'clip'"),
        ("clip[here]:fire|snow", "give 'clip[here]'"),
    ],
)
def test_what_is_no_clip_is_refused_with_its_line(grid, metric, name, message):
    with pytest.raises(RecipeError) as caught:
        load_grid(grid(METRICS, f'{metric}: "{name}"'))
    assert f"line 16: {metric}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("metric", ["clip_score", "frechet"])
def test_a_clip_that_is_not_here_or_not_whole_is_refused_before_anything_runs(
    grid, tmp_path, made, metric
):
    before = len(made)

    def problem(folder, kind):
        path = grid(METRICS, f'{metric}: "clip[{folder}]"')
        with pytest.raises(kind) as caught:
            planned(path, tmp_path / "run")
        message = str(caught.value)
        assert f"line 16: {metric}: " in message
        # A dry run lists it.
        missing = planned(path, tmp_path / "run", lenient=True).missing
        assert any(f"line 16: {metric}: " in text for text in missing)
        return message

    assert "not on this machine" in problem(tmp_path / "nowhere", MissingDependency)
    half = shutil.copytree(MINI_JUDGE, tmp_path / "half")
    for name in ("tokenizer.json", "vocab.json"):
        (half / name).unlink(missing_ok=True)
    assert "has no tokenizer" in problem(half, ModelError)
    config = json.loads((half / "config.json").read_text())
    for change in ({"architectures": ["CLIPVisionModel"]}, {"model_type": "clip_vision_model"}):
        (half / "config.json").write_text(json.dumps(config | change))
        assert "is not a CLIPModel" in problem(half, ModelError)
    (half / "config.json").write_text("[")
    with pytest.raises(IneError, match="cannot be read"):
        planned(grid(METRICS, f'{metric}: "clip[{half}]"'), tmp_path / "run")
    assert len(made) == before


def test_any_clip_in_a_folder_will_do(grid, tmp_path, reference):
    folder = shutil.copytree(MINI_JUDGE, tmp_path / "own")
    name = f"clip[{folder}]"
    path = grid(METRICS, f'clip_score: "{name}", frechet: "{name}", features: "{name}"')
    _, scored = done(path, tmp_path / "run", only=["prompts=safe", "strength=1"])
    found = figure(scored, None, f"clip-score-{name}")
    assert found.judge == name
    assert found.estimate == figure(reference[2], None, CLIP).estimate
    distance = figure(scored, SAME, f"frechet-{name}")
    assert distance.floor == figure(reference[2], SAME, FRECHET).floor
    assert figure(scored, SAME, "judge-cosine").estimate.value == pytest.approx(1)
    assert load_extractor("clip[mini]").folder == MINI_JUDGE


# --------------------------------------------------------------------- reported


def table(report, title):
    [found] = [t for s in report["sections"] for t in s["tables"] if t["title"] == title]
    return found


def test_the_terminal_shows_both(reference):
    shown = {t.title: t for t in tables(reference[2])}
    safe = shown["safe: benign, test"]
    assert {CLIP, FRECHET} <= set(safe.columns)
    plain = dict(zip(safe.columns, safe.rows[0], strict=True))
    assert plain[FRECHET] == "0 by definition"
    assert plain["judge-cosine"] == "1 by definition"
    assert plain[CLIP].value == figure(reference[2], None, CLIP).estimate.value
    floor = figure(reference[2], NOISE, FRECHET).floor
    assert any(f"tiny {floor:.2f}".replace(" 0.", " .") in note for note in safe.notes)
    assert any("100 times the cosine" in note for note in safe.notes)
    assert FRECHET not in shown["harm: harmful, test"].columns


def test_the_report_shows_what_results_csv_has(reference):
    run_ = read_run(reference[0])
    report = report_figures(grid_report(run_))
    for prompts, metric in (("safe", CLIP), ("harm", CLIP), ("safe", FRECHET)):
        found = table(report, f"{prompts}: {metric}")
        assert found["better"] == {}
        assert "Looked at by mini-judge." in found["caption"]
        rows = {row[0]: row[-1] for row in found["rows"]}
        for strength in (SAME, OTHERS, NOISE):
            cell = rows[f"tiny, additive at {strength:g}"]
            own = figure(reference[2], strength, metric, prompts)
            assert cell["value"] == own.estimate.value
            assert cell["low"] == own.estimate.low
    assert cell["note"] == "halves " + f"{own.raw:.2f}".removeprefix("0")
    assert f"share no prompt: tiny {own.floor:.2f}".replace(" 0.", " .") in found["notes"][1]
    assert "12 pictures for 96 features" in found["notes"][2]
    titles = [t["title"] for s in report["sections"] for t in s["tables"]]
    assert f"harm: {FRECHET}" not in titles


def test_runs_are_compared_by_both(reference, copy, grid, tmp_path):
    first = read_run(reference[0])
    assert diff_runs(first, read_run(copy)).nothing
    # Strength 1 in the first run is strength 1 in the second, but there it shows noise.
    plan = planned(grid(), copy)
    ruined = np.random.default_rng(5).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    for unit in plan.units:
        if unit.configuration.strength == SAME:
            count = len(unit.requests)
            plan.store.forget(unit.key)
            plan.store.write_unit(unit.key, ruined[:count], [{}] * count, [2] * count, {})
    done(grid(), copy)
    changes = {
        (c.first.metric, c.first.prompts): c
        for c in diff_runs(first, read_run(copy)).beyond
        if c.first.configuration.strength == SAME
    }
    by_score, by_distance = changes[CLIP, "safe"], changes[FRECHET, "safe"]
    assert (by_score.how, by_score.pairs) == (PAIRED, 12)
    assert by_score.difference.high < -20
    assert by_distance.how == APART
    assert by_distance.difference.low > 0
