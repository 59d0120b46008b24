"""Running a grid: resumed, shared and scored again, always the same bytes."""

import csv
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ine.errors import OutputError
from ine.evaluation import engine, score, units
from ine.evaluation.engine import Share, enter_folder, prepare, run, todo
from ine.evaluation.grid import load_grid
from ine.evaluation.results import tables, write_results
from ine.evaluation.store import Missing, Store

GRID = """\
kind: grid
version: 1
name: small
concept: fire
models:
  - {name: tiny, model: MODEL}
negatives:
  - {name: words, words: true}
guidances:
  - {name: additive, method: additive, strengths: [1, 6]}
prompts:
  - {name: tune, source: "mini:fire/implying-tuning", role: tune, expects: harmful, limit: 3}
  - {name: keep, source: "mini:fire/twins-tuning", role: tune, expects: benign, limit: 2}
  - {name: test, source: "mini:fire/implying-test", role: test, expects: harmful, limit: 2}
sampler: {steps: 2, batch: 2, guidance_scale: 5}
judges: {tune: mini-judge, test: mini-judge2}
metrics: {subject: true, preservation: [judge-cosine, ssim]}
choose: {level: 0.5}
"""
PICTURES = 3 * (3 + 2 + 2)
RESULTS = ("results.jsonl", "results.csv", "chosen.json", "pictures.jsonl", "about.json")


@pytest.fixture
def grid(tmp_path, tiny_folder):
    """Write the grid with texts replaced, and return its path."""

    def writing(*pairs, name="grid.yaml"):
        text = GRID.replace("MODEL", str(tiny_folder))
        for old, new in zip(pairs[::2], pairs[1::2], strict=True):
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text)
        return path

    return writing


def planned(path, folder, **options):
    return prepare(load_grid(path), folder, **options)


def done(path, folder, share=None, **options):
    """Run and score a grid; its plan and what was scored."""
    plan = planned(path, folder, **options)
    enter_folder(plan)
    assert run(plan, share)
    scored = score.score(plan)
    write_results(scored)
    return plan, scored


def contents(folder, *, results=True):
    """All that has to be the same bytes."""
    files = [p for kind in ("units", "readings") for p in (folder / kind).rglob("*") if p.is_file()]
    files += [folder / name for name in RESULTS if results]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module", autouse=True)
def _loaded_once():
    """Loading models and judges takes longer than what they do here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "load_detector", functools.cache(engine.load_detector))
        patch.setattr(engine, "load_parts", functools.cache(engine.load_parts))
        yield


@pytest.fixture
def counted(monkeypatch):
    """How many units were made."""
    made = []
    real = units.make_unit

    def counting(parts, guidance, unit):
        made.append(unit.key)
        return real(parts, guidance, unit)

    monkeypatch.setattr(engine, "make_unit", counting)
    return made


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_folder):
    """One run by one process, without a break: (its folder, plan, scored)."""
    folder = tmp_path_factory.mktemp("reference")
    path = folder / "grid.yaml"
    path.write_text(GRID.replace("MODEL", str(tiny_folder)))
    return folder / "run", *done(path, folder / "run")


def same_results(folder, reference):
    ours, theirs = contents(folder), contents(reference[0])
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


# ------------------------------------------------------------------------ what a run leaves


def test_a_run_makes_every_picture_once(reference):
    folder, plan, scored = reference
    assert sum(len(u.requests) for u in plan.units) == PICTURES
    assert len(list((folder / "units").rglob("*.zip"))) == len(plan.units) == 3 * (2 + 1 + 1)
    assert todo(plan) == ()
    assert not list(folder.rglob("*.part"))
    assert sum(len(c.items) for c in scored.cells.values()) == PICTURES


def test_every_figure_says_its_rule_set_and_number(reference):
    folder = reference[0]
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    table = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert len(table) == len(records)
    rates = [r for r in records if r["metric"] in ("flagged", "dsr")]
    assert rates
    for record in rates:
        assert record["rule"] == "mini-fire@0.5"
        assert record["judge"] == {"tune": "mini-judge", "test": "mini-judge2"}[record["role"]]
        assert record["pictures"] >= record["clusters"] > 0
        assert record["low"] <= record["value"] <= record["high"]
        assert record["interval"] == "Wilson"
    defended = [r for r in records if r["metric"] == "judge-cosine"]
    assert {r["prompts"] for r in defended} == {"keep"}
    assert all(r["floor"] is not None and r["raw"] is not None for r in defended)


def test_pictures_say_what_was_found_in_them(reference):
    folder, plan, scored = reference
    records = [json.loads(line) for line in (folder / "pictures.jsonl").read_text().splitlines()]
    assert len(records) == PICTURES
    for record in records:
        pictures = plan.store.pictures(record["unit"], [record["place"]])
        assert pictures.shape == (1, 16, 16, 3)
        assert record["flagged"].keys() == record["score"].keys() == {"mini-fire@0.5"}
        assert record["unet_calls"] == (4 if record["guidance"] == "none" else 6)
        assert bool(record["likeness"]) == (record["guidance"] != "none")
    cell = next(c for c in scored.cells if c.configuration.is_defended)
    cosines = scored.cells[cell].likeness["judge-cosine"]
    assert (np.abs(cosines) <= 1 + 1e-6).all()


def test_a_picture_is_the_one_that_its_request_makes_alone(reference, tiny_parts):
    from ine.sampling import PictureRequest, SamplerSettings, generate

    _, plan, scored = reference
    found = scored.cells[next(c for c in scored.cells if c.prompts == "tune")]
    requests = [item.request for item in found.items]
    assert all(isinstance(r, PictureRequest) for r in requests)
    sampler = SamplerSettings(steps=2, batch=2, guidance_scale=5)
    [unit, *_] = generate(tiny_parts, requests[:2], None, sampler)
    assert (plan.store.pictures(found.units[0][0]) == unit.pictures).all()


# ------------------------------------------------------------------------ resumed and shared


@pytest.mark.parametrize("after", [1, 4])
def test_a_run_that_was_killed_ends_with_the_same_bytes(
    grid, tmp_path, reference, monkeypatch, after
):
    real, made = engine.make_unit, []

    def dying(*args):
        if len(made) == after:
            raise KeyboardInterrupt
        made.append(args)
        return real(*args)

    monkeypatch.setattr(engine, "make_unit", dying)
    with pytest.raises(KeyboardInterrupt):
        done(grid(), tmp_path / "run")
    assert len(list((tmp_path / "run" / "units").rglob("*.zip"))) == after
    monkeypatch.setattr(engine, "make_unit", real)
    done(grid(), tmp_path / "run")
    same_results(tmp_path / "run", reference)


def test_shards_make_together_what_one_process_makes(grid, tmp_path, reference):
    folder = tmp_path / "run"
    first = planned(grid(), folder)
    assert not run(first, Share(shard=(0, 2)))
    half = contents(folder, results=False)
    assert run(planned(grid(), folder), Share(shard=(1, 2)))
    assert 0.3 < len(half) / len(contents(folder, results=False)) < 0.7
    done(grid(), folder)
    same_results(folder, reference)


def test_ranks_begin_at_their_part_and_leave_nothing_out():
    orders = [Share(rank=rank, count=3).order(tuple(range(10))) for rank in range(3)]
    assert [order[0] for order in orders] == [0, 3, 6]
    assert all(sorted(order) == list(range(10)) for order in orders)
    shards = [Share(shard=(i, 3)).order(tuple(range(10))) for i in range(3)]
    assert sorted(unit for shard in shards for unit in shard) == list(range(10))


def test_two_processes_share_a_folder(grid, tmp_path, reference):
    folder, path = tmp_path / "run", grid()
    command = [sys.executable, "-m", "ine", "-qq", "evaluate", str(path), "--out", str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    # What `accelerate launch --num_processes 2` sets for its processes.
    ranks = [{"WORLD_SIZE": "2", "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(2)]
    processes = [
        subprocess.Popen(command, env={**env, **rank}, stdout=-1, stderr=-1, text=True)
        for rank in ranks
    ]
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    # The first rank scores and tells.
    assert [bool(out) for out, _ in told] == [True, False]
    same_results(folder, reference)


def test_a_unit_that_another_process_has_is_left_to_it(grid, tmp_path, monkeypatch):
    plan = planned(grid(), tmp_path / "run")
    taken, slept = plan.units[0], []
    with plan.store.claim(taken.key) as ours:
        assert ours

        def waiting(seconds):
            # By now all else is there; the other process gives up.
            assert {u.key for u in todo(plan)} == {taken.key}
            slept.append(seconds)
            raise KeyboardInterrupt

        monkeypatch.setattr(engine.time, "sleep", waiting)
        # A lock of one process does not shut out itself, so look as another one does.
        monkeypatch.setattr(Store, "claim", refusing(taken.key))
        with pytest.raises(KeyboardInterrupt):
            run(plan)
    assert slept


def refusing(key):
    from contextlib import contextmanager

    @contextmanager
    def claim(store, wanted):
        yield wanted != key

    return claim


def test_the_lock_of_a_process_that_died_is_free(tmp_path):
    code = (
        "import os, sys; from ine.evaluation.store import Store\n"
        f"with Store({str(tmp_path)!r}).claim('k') as ours:\n"
        "    print(ours, flush=True); sys.stdin.readline(); os._exit(9)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen([sys.executable, "-c", code], env=env, stdin=-1, stdout=-1, text=True)
    assert holder.stdout.readline() == "True\n"
    with Store(tmp_path).claim("k") as ours:
        assert not ours
    holder.communicate("\n", timeout=60)
    with Store(tmp_path).claim("k") as ours:
        assert ours


# ------------------------------------------------------------------------------- reuse


def test_another_rule_scores_what_is_there(grid, tmp_path, reference, counted, monkeypatch):
    monkeypatch.setattr(engine, "load_detector", None)
    monkeypatch.setattr(engine, "load_parts", None)
    path = grid("metrics:", "rules: [mini-snow@0.5, mini-fire@0.5]\nmetrics:")
    _, scored = done(path, reference_copy(reference, tmp_path))
    assert counted == []
    rules = {f.rule for f in scored.figures if f.metric == "flagged"}
    assert rules == {"mini-snow@0.5", "mini-fire@0.5"}


def reference_copy(reference, tmp_path):
    import shutil

    return shutil.copytree(reference[0], tmp_path / "copy")


def test_another_judge_looks_and_makes_nothing(grid, tmp_path, reference, counted):
    looked = []
    real = engine.load_detector

    def loading(name):
        looked.append(name)
        return real(name)

    folder = reference_copy(reference, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "load_detector", loading)
        done(grid("tune: mini-judge,", "tune: mini-judge2,"), folder)
    assert counted == []
    assert looked == ["mini-judge2"]


def test_other_grids_use_a_shared_store(grid, tmp_path, counted):
    store = tmp_path / "store"
    done(grid(), tmp_path / "one", store=store)
    first = len(counted)
    path = grid("name: small", "name: other", "[1, 6]", "[6, 7]", name="other.yaml")
    done(path, tmp_path / "two", store=store)
    # Undefended and strength 6 are there; strength 7 is not.
    assert len(counted) - first == first // 3
    assert not (tmp_path / "two" / "units").exists()


def test_limit_makes_part_of_it(grid, tmp_path, counted):
    plan, scored = done(grid(), tmp_path / "run", limit=2)
    assert {len(c.items) for c in scored.cells.values()} == {2}
    assert len(counted) == len(plan.units) == 9


# ------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "another", "gone"])
def test_a_damaged_unit_is_made_again(grid, tmp_path, reference, counted, caplog, damage):
    folder = reference_copy(reference, tmp_path)
    plan = planned(grid(), folder)
    path = plan.store.unit_path(plan.units[3].key)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 3] ^= 255
        # A flipped pixel is found when somebody looks at it.
        for reading in (folder / "readings").rglob(f"{plan.units[3].key}*"):
            reading.unlink()
    spoilt = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "flipped": data,
        "another": plan.store.unit_path(plan.units[4].key).read_bytes(),
    }
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(spoilt[damage])
    done(grid(), folder)
    assert counted == [plan.units[3].key]
    assert ("made again" in caplog.text) == (damage != "gone")
    same_results(folder, reference)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"unit": 1', b"PK\3\4"])
def test_a_damaged_reading_is_made_again(grid, tmp_path, reference, counted, content):
    folder = reference_copy(reference, tmp_path)
    plan = planned(grid(), folder)
    for path in (folder / "readings").rglob(f"{plan.units[3].key}*"):
        path.write_bytes(content)
    done(grid(), folder)
    assert counted == []
    same_results(folder, reference)


def test_pictures_that_are_deleted_under_a_running_grid(grid, tmp_path, reference, caplog):
    folder = tmp_path / "run"
    plan = planned(grid(), folder)
    gone = []

    def deleting(progress):
        if progress.done > PICTURES // 2 and not gone:
            gone.append(next((folder / "units").rglob("*.zip")))
            gone[0].unlink()

    assert run(plan, progress=deleting)
    assert gone
    assert "removed meanwhile" in caplog.text
    done(grid(), folder)
    same_results(folder, reference)


def test_what_is_missing_while_scoring_is_said(grid, tmp_path, reference):
    plan = planned(grid(), reference_copy(reference, tmp_path))
    plan.store.unit_path(plan.units[0].key).unlink()
    with pytest.raises(Missing):
        score.score(plan)


def test_a_full_disk_loses_nothing(grid, tmp_path, reference, monkeypatch):
    import errno

    from ine import files

    real, written = files.os.fsync, []

    def full(handle):
        written.append(handle)
        if len(written) == 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match="disk is full"):
        done(grid(), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.part"))
    done(grid(), tmp_path / "run")
    same_results(tmp_path / "run", reference)


def test_a_store_that_cannot_be_written(grid, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another --out"):
        done(grid(), tmp_path / "run", store=tmp_path / "file")


def test_the_run_folder_of_another_grid(grid, tmp_path, reference):
    folder = reference_copy(reference, tmp_path)
    before = contents(folder, results=False)
    for pairs in (("name: small", "name: other"), ("[1, 6]", "[1, 7]")):
        plan = planned(grid(*pairs), folder)
        with pytest.raises(OutputError, match="holds"):
            enter_folder(plan)
    enter_folder(planned(grid("name: small", "name: other"), folder), force=True)
    assert contents(folder, results=False) == before
    # Rules, judges and metrics only score: the same grid.
    path = grid("metrics: {subject: true", "rules: mini-snow@0.5\nmetrics: {subject: false")
    enter_folder(planned(path, reference_copy(reference, tmp_path / "more")))


def test_a_folder_that_is_not_ours(grid, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "grid.json").write_text("[]")
    with pytest.raises(OutputError, match="is not of ine"):
        enter_folder(planned(grid(), tmp_path / "run"))


# ------------------------------------------------------------------------------ choosing


def faked(plan, flags, kept):
    """`Scored` cells with given shares: {(strength, prompt set): share}."""
    cells = {}
    for cell in plan.units_of:
        items = plan.expansion.sets[cell.prompts].items(cell.seed)
        strength = cell.configuration.strength
        share = flags.get((strength, cell.prompts), 0.0)
        hit = np.arange(len(items)) < round(share * len(items))
        cells[cell] = score.CellScores(
            cell=cell,
            items=items,
            verdicts={"mini-fire@0.5": hit},
            scores={"mini-fire@0.5": hit.astype(float)},
            calls=np.ones(len(items), dtype=np.int64),
            likeness={"judge-cosine": np.full(len(items), kept.get(strength, 1.0))},
            subject=None,
            units=(),
            made=(),
        )
    floors = {("tiny", name, "judge-cosine"): 0.0 for name in plan.expansion.sets}
    return score.Scored(
        plan=plan, cells=cells, floors=floors, rows=score.rows_of(plan), figures=(), choices=()
    )


def chosen(plan, flags, kept):
    [choice] = score.choose(faked(plan, flags, kept))
    return choice


def test_choices_are_made_on_tune_sets_alone(reference):
    plan = reference[1]
    tune = {(1.0, "tune"): 0.8, (6.0, "tune"): 0.2}
    # On the test set it is the other way round, as clearly as can be.
    test = {(1.0, "test"): 0.0, (6.0, "test"): 1.0}
    assert chosen(plan, tune | test, {}).row.strength == 6.0
    # The control: choosing by the test set gives the other one.
    swapped = {(1.0, "tune"): 0.0, (6.0, "tune"): 1.0}
    assert chosen(plan, swapped, {}).row.strength == 1.0


def test_a_choice_keeps_enough_or_says_that_it_does_not(reference):
    plan = reference[1]
    tune = {(1.0, "tune"): 0.8, (6.0, "tune"): 0.2}
    enough = chosen(plan, tune, {1.0: 0.9, 6.0: 0.4})
    assert (enough.row.strength, enough.reached) == (1.0, True)
    never = chosen(plan, tune, {1.0: 0.3, 6.0: 0.4})
    assert (never.row.strength, never.reached) == (6.0, False)
    # Of equals the weaker.
    assert chosen(plan, {}, {}).row.strength == 1.0


def test_the_terminal_tells_of_test_sets_only_what_was_chosen(reference):
    _, plan, scored = reference
    shown = {table.title: [row[0] for row in table.rows] for table in tables(scored)}
    for name, prompts in plan.expansion.sets.items():
        role = prompts.spec.role
        [labels] = [rows for title, rows in shown.items() if title.startswith(f"{name}: ")]
        defended = [label for label in labels if "undefended" not in label]
        if role == "test":
            assert defended
            assert all(label.endswith(" *") for label in defended)
        else:
            assert any(not label.endswith(" *") for label in defended)


def test_the_figures_of_a_choice_come_from_test_sets(reference):
    folder = reference[0]
    [choice] = json.loads((folder / "chosen.json").read_text())
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    reported = [r for r in records if r["chosen"] and r["role"] == "test"]
    assert {r["strength"] for r in reported} == {choice["strength"]}
    assert {r["metric"] for r in reported} >= {"flagged", "dsr", "unet-calls"}


def test_negatives_of_a_group_are_one_row(grid, tmp_path):
    path = grid(
        "{name: words, words: true}",
        "{name: words, words: true, group: both}\n  - {name: smoke, text: smoke, group: both}",
    )
    plan = planned(path, tmp_path / "run")
    rows = [r for r in score.rows_of(plan) if r.is_group]
    assert [(r.strength, r.negative) for r in rows] == [(1.0, "both"), (6.0, "both")]
    choices = list(score.choose(faked(plan, {}, {})))
    assert {c.row.negative for c in choices} == {"words", "smoke", "both"}
    scored = faked(plan, {}, {})
    assert sum(len(c.items) for c in scored.pooled(rows[0], "tune")) == 6
    [figure, *_] = [f for f in score._figures(scored) if f.row == rows[0] and f.prompts == "tune"]
    assert (figure.estimate.count, figure.estimate.clusters) == (6, 3)
    assert figure.interval == score.BOOTSTRAP


def test_a_group_of_inversion_seeds_meets_a_grid_seed_each(grid, tmp_path):
    path = grid(
        *("{name: words, words: true}", "{name: words, words: true}" + SEEDED),
        *("sampler:", "seeds: [0, 1]\nsampler:"),
    )
    plan = planned(path, tmp_path / "run")
    row = next(r for r in score.rows_of(plan) if r.is_group)
    cells = faked(plan, {}, {}).pooled(row, "tune")
    assert [(c.cell.configuration.negative, c.cell.seed) for c in cells] == [
        ("one", 0),
        ("two", 1),
    ]
    # So a pooled row has as many pictures as words alone, of the same prompts and seeds.
    words = next(r for r in score.rows_of(plan) if r.negative == "words")
    others = faked(plan, {}, {}).pooled(words, "tune")
    assert [i.request for c in cells for i in c.items] == [
        i.request for c in others for i in c.items
    ]


SEEDED = """
  - {name: one, text: smoke, group: both, seeds: [0]}
  - {name: two, text: smoke, group: both, seeds: [1]}"""


def test_matched_preservation_is_read_from_test_sets(grid, tmp_path):
    line = '- {name: fine, source: "mini:fire/benign", role: test, expects: benign, limit: 2}'
    path = grid("sampler:", f"  {line}\nsampler:")
    plan = planned(path, tmp_path / "run")
    flags = {(1.0, "test"): 1.0, (6.0, "test"): 0.0, (1.0, "tune"): 0.0, (6.0, "tune"): 0.0}
    figures = list(score._matched(faked(plan, flags, {1.0: 0.75, 6.0: 0.25})))
    [figure] = figures
    # Half way between the two strengths, by preservation.
    assert figure.estimate.value == pytest.approx(0.5)
    assert figure.prompts == "test"


# ------------------------------------------------------------------------------ its size


def test_scoring_many_again_is_quick_and_holds_one_unit(grid, tmp_path, monkeypatch):
    import time
    import tracemalloc

    from ine.judging.detection import Detection

    path = grid("metrics: {subject: true, preservation: [judge-cosine, ssim]}", "",
                "limit: 3", "images: 5", "batch: 2", "batch: 16", "[1, 6]", "[1]")  # fmt: skip
    plan = planned(path, tmp_path / "run")
    pictures = np.zeros((16, 16, 16, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    for unit in plan.units:
        count = len(unit.requests)
        plan.store.write_unit(unit.key, pictures[:count], [{}] * count, [4] * count, {})
        for name in plan.needs[unit.key]:
            if name.startswith("features:"):
                features = rng.normal(size=(count, 64))
                features /= np.linalg.norm(features, axis=1, keepdims=True)
                plan.store.write_numbers(unit.key, name, features.astype(np.float32))
            else:
                found = [(Detection(label="fire", score=float(x)),) for x in rng.random(count)]
                plan.store.write_look(unit.key, name, {}, found)
    total = sum(len(u.requests) for u in plan.units)
    assert total > 1000
    monkeypatch.setattr(engine, "make_unit", None)
    monkeypatch.setattr(engine, "load_detector", None)
    start = time.monotonic()
    plan = planned(path, tmp_path / "run")
    assert run(plan)
    write_results(score.score(plan))
    assert (time.monotonic() - start) / total * 1000 < 5
    cells = [c for c in plan.units_of if c.prompts == "tune"]
    tracemalloc.start()
    for cell in cells:
        score.score_cell(plan, cell)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # All pictures of the grid are more than what scoring ever holds.
    assert peak < total * pictures[0].nbytes / 2


# ---------------------------------------------------------------------------- the command


def test_the_command_tells_and_writes(run_ine, grid, tmp_path):
    path = grid()
    dry = run_ine("evaluate", path, "--out", tmp_path / "run", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert f"9 cells, {PICTURES} pictures, 0 of them there" in dry.stdout
    assert "tiny, additive at 6, words" in dry.stdout
    assert not (tmp_path / "run").exists()
    result = run_ine("evaluate", path, "--out", tmp_path / "run", "--limit", 2)
    assert result.exit_code == 0, result.output
    assert "test: harmful, test" in result.stdout
    assert "chosen on the tune sets" in result.stdout
    assert "pictures/s" in result.stderr
    again = run_ine("evaluate", path, "--out", tmp_path / "run", "--limit", 2, "--json")
    figures = json.loads(again.stdout)["figures"]
    assert {f["prompts"] for f in figures} == {"tune", "keep", "test"}
    dry = run_ine("evaluate", path, "--out", tmp_path / "run", "--dry-run", "--json", "--limit", 2)
    assert json.loads(dry.stdout)["there"] == 18


def test_a_dry_run_tells_what_is_missing(run_ine, grid, tmp_path, tiny_folder):
    path = grid(str(tiny_folder), "mini, unet: no.safetensors")
    dry = run_ine("evaluate", path, "--dry-run", "--out", tmp_path / "run")
    assert dry.exit_code == 0
    assert "missing: line 6: model 'tiny': unet no.safetensors" in dry.stdout
    assert f"{PICTURES} pictures" in dry.stdout
    real = run_ine("evaluate", path, "--out", tmp_path / "run")
    assert real.exit_code == 3
    assert "no.safetensors" in real.stderr
    assert not (tmp_path / "run").exists()


def test_a_shard_that_is_done_leaves_the_scoring(run_ine, grid, tmp_path):
    path, out = grid(), tmp_path / "run"
    first = run_ine("evaluate", path, "--out", out, "--limit", 2, "--shard", "0/2")
    assert (first.exit_code, first.stdout) == (0, "")
    assert "this shard is done" in first.stderr
    second = run_ine("evaluate", path, "--out", out, "--limit", 2, "--shard", "1/2")
    assert "results:" in second.stdout
    wrong = run_ine("evaluate", path, "--shard", "2/2")
    assert wrong.exit_code == 2


def test_bad_grids_end_with_their_exit_code(run_ine, grid, tmp_path):
    result = run_ine("evaluate", grid("choose:", "chose:"), "--out", tmp_path / "run")
    assert result.exit_code == 3
    assert "line 18" in result.stderr
    assert "did you mean 'choose'" in result.stderr
    assert not Path(tmp_path / "run").exists()
