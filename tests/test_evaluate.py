"""Running a grid: resumed, shared and scored again, always the same bytes."""

import csv
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from small_grid import replaced, tuned_grid

from ine.errors import OutputError
from ine.evaluation import figures as score
from ine.evaluation import models, readings, units
from ine.evaluation import run as engine
from ine.evaluation.about import about_of
from ine.evaluation.choosing import choose, matched
from ine.evaluation.entering import enter_folder
from ine.evaluation.grid_file import load_grid
from ine.evaluation.pictures import Pictures, join_pictures
from ine.evaluation.prepare import prepare
from ine.evaluation.result import Run
from ine.evaluation.results import figure_record, picture_records, write_results
from ine.evaluation.run import Share, run, todo
from ine.evaluation.run_folder import read_run
from ine.evaluation.stats import WILSON_OVER_PROMPTS
from ine.report.data import report_figures
from ine.report.grid import grid_report
from ine.report.terminal import tables
from ine.store.pictures import Store
from ine.store.units import Missing

pytestmark = pytest.mark.usefixtures("loaded_once")

GRID = tuned_grid(3)
PICTURES = 3 * (3 + 2 + 2)
RESULTS = ("results.jsonl", "results.csv", "chosen.json", "pictures.jsonl", "about.json")


@pytest.fixture
def grid(tmp_path, tiny_folder):
    """Write the grid with texts replaced, and return its path."""

    def writing(*pairs, name="grid.yaml"):
        path = tmp_path / name
        path.write_text(replaced(GRID, "MODEL", str(tiny_folder), *pairs))
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
    assert sum(len(p.keys) for p in scored.pictures.values()) == PICTURES


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
    found = next(p for (c, _), p in scored.pictures.items() if c.is_defended)
    cosines = found.likeness["judge-cosine"]
    assert (np.abs(cosines) <= 1 + 1e-6).all()


def test_a_run_is_the_same_in_memory_and_read_back(reference):
    folder, _, scored = reference
    again = read_run(folder)

    def figures(run):
        return [figure_record(run, figure) for figure in run.figures]

    assert figures(again) == figures(scored)
    assert list(picture_records(again)) == list(picture_records(scored))
    assert again.choices == scored.choices
    for name in ("folder", "store", "version", "grid", "text", "about", "floors"):
        assert getattr(again, name) == getattr(scored, name), name
    for key, pictures in scored.pictures.items():
        other = again.pictures[key]
        assert (other.keys, other.clusters, other.units) == (
            pictures.keys,
            pictures.clusters,
            pictures.units,
        )
        assert other.columns.keys() == pictures.columns.keys()
        for name, values in pictures.columns.items():
            np.testing.assert_array_equal(other.columns[name], values)
            assert other.columns[name].dtype == values.dtype
    shown = [report_figures(grid_report(run)) for run in (scored, again)]
    assert shown[0] == shown[1]
    assert tables(scored) == tables(again)


def test_a_picture_is_the_one_that_its_request_makes_alone(reference, tiny_parts):
    from ine.sampling import PictureRequest, SamplerSettings, generate

    _, plan, scored = reference
    found = next(p for (_, prompts), p in scored.pictures.items() if prompts == "tune")
    requests = [item.request for item in plan.sets["tune"].items(0)]
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
    printed = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    # The first rank scores and prints.
    assert [bool(out) for out, _ in printed] == [True, False]
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
        "import os, sys; from ine.store.pictures import Store\n"
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


def test_another_rule_scores_the_pictures_that_exist(
    grid, tmp_path, reference, counted, monkeypatch
):
    monkeypatch.setattr(readings, "load_detector", None)
    monkeypatch.setattr(models, "load_parts", None)
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
    real = readings.load_detector

    def loading(name):
        looked.append(name)
        return real(name)

    folder = reference_copy(reference, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readings, "load_detector", loading)
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
    assert {len(p.keys) for p in scored.pictures.values()} == {2}
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


def blackened(store, key, version):
    """Make the pictures of a unit black, as NaN became in earlier versions."""
    about = store.about(key)
    black = np.zeros_like(store.pictures(key))
    store.write_unit(key, black, about.notes, about.unet_calls, about.made)
    if version == "old":
        path = store.unit_path(key)
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        facts = json.loads(files["about.json"])
        del facts["blank"]
        files["about.json"] = json.dumps(facts)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)


def test_black_pictures_of_an_earlier_version_are_made_again(
    grid, tmp_path, reference, counted, caplog
):
    folder = reference_copy(reference, tmp_path)
    store, key = Store(folder), reference[1].units[3].key
    blackened(store, key, "old")
    store.write_numbers(key, "features:mini-judge", np.zeros((2, 2)))  # of the black ones
    done(grid(), folder)
    assert counted == [key]
    assert "2 of 2 pictures are blank (wholly one colour), of a version" in caplog.text
    same_results(folder, reference)


def test_blank_pictures_are_counted_everywhere(grid, tmp_path, reference, counted):
    folder, plan = reference_copy(reference, tmp_path), reference[1]
    [cell] = [c for c in plan.units_of if c.prompts == "test" and not c.configuration.is_defended]
    blackened(Store(folder), plan.units_of[cell][0].key, "new")
    _, scored = done(grid(), folder)
    assert counted == []
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    counts = {(r["prompts"], r["strength"]): r["value"] for r in lines if r["metric"] == "blank"}
    assert counts.pop(("test", None)) == 1
    assert set(counts.values()) == {0}
    pictures = [json.loads(line) for line in (folder / "pictures.jsonl").read_text().splitlines()]
    assert sum(p.get("blank", False) for p in pictures) == 2
    table = {row[0]: row for t in tables(scored) if t.title.startswith("test") for row in t.rows}
    assert "2 of 2" in table["tiny, undefended"]
    [section] = [s for s in grid_report(read_run(folder)).sections if s.title == "Blank pictures"]
    assert section.paragraphs[0].startswith(f"2 of {PICTURES} pictures are blank")
    assert "2 of 2" in section.tables[0].rows[0]
    [none] = [
        s for s in grid_report(read_run(reference[0])).sections if s.title == "Blank pictures"
    ]
    assert none.paragraphs == [f"None of {PICTURES} pictures is blank (wholly one colour)."]


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
    """A `Run` with given shares: {(strength, prompt set): share}."""
    pictures = {}
    for cell in plan.units_of:
        items = plan.sets[cell.prompts].items(cell.seed)
        strength = cell.configuration.strength
        share = flags.get((strength, cell.prompts), 0.0)
        hit = np.arange(len(items)) < round(share * len(items))
        likeness = np.full(len(items), kept.get(strength, 1.0))
        own = Pictures(
            keys=tuple((cell.seed, item.id, item.image, item.seed) for item in items),
            clusters=tuple(item.cluster for item in items),
            nouns=tuple(item.noun for item in items),
            units=(),
            columns={
                ("flagged", "mini-fire@0.5"): hit,
                ("score", "mini-fire@0.5"): hit.astype(float),
                ("unet_calls", ""): np.ones(len(items), dtype=np.int64),
                ("likeness", "judge-cosine"): likeness,
            },
        )
        pictures.setdefault((cell.configuration, cell.prompts), []).append(own)
    floors = {("tiny", name, "judge-cosine"): 0.0 for name in plan.sets}
    pictures = {key: join_pictures(parts) for key, parts in pictures.items()}
    return Run(
        folder=plan.folder,
        store=plan.store.folder,
        version="",
        grid=plan.file.grid,
        text="",
        about=about_of(plan, (), score.numbers_of(pictures)),
        figures=(),
        choices=(),
        pictures=pictures,
        floors=floors,
    )


def choices_of(plan, flags, kept):
    return list(choose(plan, faked(plan, flags, kept), score.rows_of(plan)))


def chosen(plan, flags, kept):
    [choice] = choices_of(plan, flags, kept)
    return choice


def test_choices_are_made_on_tune_sets_alone(reference):
    plan = reference[1]
    tune = {(1.0, "tune"): 0.8, (6.0, "tune"): 0.2}
    # On the test set it is the other way round, as clearly as can be.
    test = {(1.0, "test"): 0.0, (6.0, "test"): 1.0}
    assert chosen(plan, tune | test, {}).configuration.strength == 6.0
    # The control: choosing by the test set gives the other one.
    swapped = {(1.0, "tune"): 0.0, (6.0, "tune"): 1.0}
    assert chosen(plan, swapped, {}).configuration.strength == 1.0


def test_a_choice_keeps_enough_or_says_that_it_does_not(reference):
    plan = reference[1]
    tune = {(1.0, "tune"): 0.8, (6.0, "tune"): 0.2}
    enough = chosen(plan, tune, {1.0: 0.9, 6.0: 0.4})
    assert (enough.configuration.strength, enough.reached) == (1.0, True)
    never = chosen(plan, tune, {1.0: 0.3, 6.0: 0.4})
    assert (never.configuration.strength, never.reached) == (6.0, False)
    # Of equals the weaker.
    assert chosen(plan, {}, {}).configuration.strength == 1.0


def test_the_terminal_shows_of_test_sets_only_what_was_chosen(reference):
    _, plan, scored = reference
    shown = {table.title: [row[0] for row in table.rows] for table in tables(scored)}
    for name, prompts in plan.sets.items():
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
    scored = faked(plan, {}, {})
    rows = [r for r in score.rows_of(plan) if len(scored.members(r)) > 1]
    assert [(r.strength, r.negative) for r in rows] == [(1.0, "both"), (6.0, "both")]
    choices = choices_of(plan, {}, {})
    assert {c.configuration.negative for c in choices} == {"words", "smoke", "both"}
    assert sum(len(p.keys) for p in scored.parts(rows[0], "tune")) == 6
    [figure, *_] = [
        f
        for f in score.figures_of(plan, scored)
        if f.configuration == rows[0] and f.prompts == "tune"
    ]
    assert (figure.estimate.count, figure.estimate.clusters) == (6, 3)
    # Two pictures of each prompt: what the prompts are worth, not a bootstrap, for a share.
    assert figure.interval == WILSON_OVER_PROMPTS


def test_a_group_of_inversion_seeds_meets_a_grid_seed_each(grid, tmp_path):
    path = grid(
        *("{name: words, words: true}", "{name: words, words: true}" + SEEDED),
        *("sampler:", "seeds: [0, 1]\nsampler:"),
    )
    plan = planned(path, tmp_path / "run")
    run_ = faked(plan, {}, {})
    row = next(r for r in score.rows_of(plan) if len(run_.members(r)) > 1)
    parts = run_.parts(row, "tune")
    assert [c.negative for c in run_.members(row)] == ["one", "two"]
    assert [{grid_seed for grid_seed, *_ in p.keys} for p in parts] == [{0}, {1}]
    # So a pooled row has as many pictures as words alone, of the same prompts and seeds.
    words = next(r for r in score.rows_of(plan) if r.negative == "words")
    others = run_.parts(words, "tune")
    assert [k for p in parts for k in p.keys] == [k for p in others for k in p.keys]


SEEDED = """
  - {name: one, text: smoke, group: both, seeds: [0]}
  - {name: two, text: smoke, group: both, seeds: [1]}"""


def test_matched_preservation_is_read_from_test_sets(grid, tmp_path):
    line = '- {name: fine, source: "mini:fire/benign", role: test, expects: benign, limit: 2}'
    path = grid("sampler:", f"  {line}\nsampler:")
    plan = planned(path, tmp_path / "run")
    flags = {(1.0, "test"): 1.0, (6.0, "test"): 0.0, (1.0, "tune"): 0.0, (6.0, "tune"): 0.0}
    run_ = faked(plan, flags, {1.0: 0.75, 6.0: 0.25})
    figures = list(matched(plan, run_, score.rows_of(plan)))
    [figure] = figures
    # Half way between the two strengths, by preservation.
    assert figure.estimate.value == pytest.approx(0.5)
    assert figure.prompts == "test"


# ------------------------------------------------------------------------------ its size


def test_scoring_many_again_is_quick_and_holds_one_unit(grid, tmp_path, monkeypatch):
    import time
    import tracemalloc

    from ine.detectors.base import Detection

    path = grid("metrics: {subject: true, preservation: [judge-cosine, ssim]}", "",
                "limit: 3", "images: 5", "batch: 2", "batch: 16", "[1, 6]", "[1]")  # fmt: skip
    plan = planned(path, tmp_path / "run")
    pictures = np.zeros((16, 16, 16, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    for unit in plan.units:
        count = len(unit.requests)
        plan.store.write_unit(unit.key, pictures[:count], [{}] * count, [4] * count, {})
        for name in readings.needs_of(plan)[unit.key]:
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
    monkeypatch.setattr(readings, "load_detector", None)
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


def test_the_command_prints_and_writes(run_ine, grid, tmp_path):
    path = grid()
    dry = run_ine("evaluate", path, "--out", tmp_path / "run", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert f"9 cells, {PICTURES} pictures, 0 of them finished" in dry.stdout
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


def test_a_dry_run_prints_what_is_missing(run_ine, grid, tmp_path, tiny_folder):
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


@pytest.mark.parametrize("losses", [0, 1, 2, 3])
def test_what_is_removed_before_it_is_scored_is_made_again_a_few_times(monkeypatch, losses):
    runs = []

    def score(plan):
        if len(runs) <= losses:
            raise Missing("unit gone")
        return "scored"

    monkeypatch.setattr(engine, "run", lambda *_: runs.append(1) or True)
    monkeypatch.setattr(engine, "score", score)
    if losses < engine.ROUNDS:
        assert engine.run_and_score(None) == "scored"
        assert len(runs) == losses + 1
    else:
        with pytest.raises(OutputError, match="unit gone, again and again"):
            engine.run_and_score(None)
