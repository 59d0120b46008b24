"""Several inversions of one defence: seeds, states, which is kept, and what is said of them."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_inversion import (
    RULE,
    TRIGGER,
    Finder,
    Killed,
    noise,
    options_for,
    previews_of,
    thing_recipe,
    with_benign,
)

import ine.inversion.invert as loop
import ine.inversion.run as running
from ine.detectors.rules import RULES, Rule
from ine.embeddings.card import model_card
from ine.embeddings.embedding import new_embedding, read_embedding
from ine.errors import IneError, RecipeError
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.inversion.header import runs_in
from ine.inversion.history import Inversion, Preview
from ine.inversion.invert import invert
from ine.inversion.run import run_inversion
from ine.inversion.runs import best, run_seed, run_state
from ine.inversion.steering import check_steering
from ine.recipe import InversionSettings, load_recipe
from ine.studies.defend.estimate import stages_of
from ine.studies.defend.prompts import prompts_for
from ine.studies.defend.tuning_page import runs_tables


@pytest.fixture
def rule(monkeypatch):
    found = Rule(name=RULE, detector="test", labels=("thing",), threshold=0.5)
    monkeypatch.setitem(RULES, RULE, found)
    return found


def recipe_with(**fields):
    recipe = thing_recipe()
    spec = recipe.inversion.model_copy(update={"steps": 4, "preview_every": 4, **fields})
    return recipe.model_copy(update={"inversion": spec})


def score(monkeypatch, *left, **fixed):
    """Let previews read these shares one after the other; return the vectors that they saw."""
    seen, shares = [], iter(left)

    class Scripted:
        def __init__(self, **_):
            pass

        def __call__(self, vectors, step):
            seen.append([v.clone() for v in vectors])
            return Preview(step=step, recovery=None, left=next(shares), undefended=1.0, **fixed)

        def recovery(self, vectors):
            return 0.25

    monkeypatch.setattr(running, "Previews", Scripted)
    return seen


def go(parts, recipe, options, **kwargs):
    return run_inversion(parts, parts, recipe, options, Finder(), **kwargs)


def kill_at(run, step):
    def on_step(progress):
        if (progress.run, progress.step) == (run, step):
            raise Killed

    return on_step


# Which run is kept


@pytest.mark.parametrize(("left", "kept"), [((0.5, 0.25, 0.75), 2), ((0.5, 0.5, 0.5), 1)])
def test_the_run_that_leaves_least_is_kept_the_first_of_equals(
    tiny_parts, rule, tmp_path, monkeypatch, left, kept
):
    seen = score(monkeypatch, *left)
    recipe, options = recipe_with(runs=3), options_for(tmp_path, seed=7)
    embedding, result, summary = go(tiny_parts, recipe, options)
    assert (result.run, summary["run"]) == (kept, kept)
    assert torch.equal(embedding.vectors[0], seen[kept - 1][0])
    assert [one.kept.left for one in result.runs] == [one["left"] for one in summary["runs"]]
    assert [one["left"] for one in summary["runs"]] == list(left)
    # The recovery of the kept vectors alone is measured.
    assert summary["recovery"] == 0.25
    assert [one["recovery"] for one in summary["runs"]] == [None] * 3


def made(left, preservation, run):
    kept = Preview(step=1, recovery=None, left=left, undefended=1.0, preservation=preservation)
    return Inversion(vectors=(), kept=kept, previews=(kept,), loss=0.0, steps=1, run=run)


def test_a_run_that_leaves_less_is_not_kept_where_it_preserves_too_little():
    runs = [made(0.5, 0.95, 1), made(0.125, 0.7, 2), made(0.25, 0.9, 3)]
    assert [best(runs, target).run for target in (0.8, 0.5, 0.92, 0.99)] == [3, 2, 1, 1]


# Seeds and states


def test_every_run_is_an_inversion_with_a_seed_of_its_own_the_first_with_the_users(
    tiny_parts, rule, tmp_path, monkeypatch
):
    seen = score(monkeypatch, 0.5, 0.5, 0.5)
    recipe = recipe_with(runs=3)
    prepared = running.prepare(
        tiny_parts, tiny_parts, recipe, options_for(tmp_path, seed=7), Finder()
    )
    prepared.invert()
    seeds = [run_seed(7, run) for run in (1, 2, 3)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    asked = {"trigger": TRIGGER, "plural": recipe.plural}
    for seed, vectors in zip(seeds, seen, strict=True):
        own = invert(tiny_parts, prepared.pictures, recipe.inversion, seed=seed, **asked)
        assert torch.equal(own.vectors[0], vectors[0])
    assert not torch.equal(seen[0][0], seen[1][0])


def test_one_run_is_what_it_always_was(tiny_parts, rule, tmp_path):
    """Header, state and hash are those of recipes that do not know of runs."""
    recipe, options = thing_recipe(), options_for(tmp_path)
    embedding, result, _ = go(tiny_parts, recipe, options)
    assert (result.run, result.runs) == (1, ())
    assert not {name for name in embedding.metadata if name.startswith("ine.run")}
    assert not {name for name in embedding.metadata if name.startswith("ine.preview")}
    assert (options.folder / "state.safetensors").is_file()
    for new in (b'"runs"', b'"preview_guidance"', b'"preview_strength"'):
        assert new not in recipe.deciding
    assert b'"patience"' in recipe.deciding
    changes = {"runs": 2, "preview_guidance": "additive", "preview_strength": 3.0}
    hashes = {recipe_with(**{name: value}).hash for name, value in changes.items()}
    assert len(hashes | {recipe_with().hash}) == 4


@pytest.mark.parametrize("kills", [[(1, 3), (2, 1), (2, 3)], [(1, 4), (3, 2)]])
def test_a_killed_command_ends_byte_equal_and_repeats_no_finished_run(
    tiny_parts, rule, tmp_path, monkeypatch, kills
):
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    recipe = recipe_with(runs=3)
    whole, killed = options_for(tmp_path / "whole"), options_for(tmp_path / "killed")
    go(tiny_parts, recipe, whole)
    for kill in kills:
        with pytest.raises(Killed):
            go(tiny_parts, recipe, killed, on_step=kill_at(*kill))
        assert not killed.out.exists()
    steps = []
    go(tiny_parts, recipe, killed, on_step=lambda p: steps.append((p.run, p.step, p.done)))
    run, step = kills[-1]
    saved = step - step % 2
    rest = [(run, n, (run - 1) * 4 + n) for n in range(saved + 1, 5)]
    assert steps == rest + [(r, n, (r - 1) * 4 + n) for r in range(run + 1, 4) for n in range(1, 5)]
    assert killed.out.read_bytes() == whole.out.read_bytes()


def test_more_runs_can_be_asked_for_later(tiny_parts, rule, tmp_path):
    options = options_for(tmp_path / "grown")
    go(tiny_parts, recipe_with(runs=1), options)
    more, steps = replace(options, force=True), []
    note = lambda p: steps.append(p.run)  # noqa: E731
    go(tiny_parts, recipe_with(runs=3), more, on_step=note)
    assert steps == [2] * 4 + [3] * 4
    whole = options_for(tmp_path / "whole")
    go(tiny_parts, recipe_with(runs=3), whole)
    assert options.out.read_bytes() == whole.out.read_bytes()
    # Of fewer runs the others' states do not stay.
    go(tiny_parts, recipe_with(runs=2), more)
    assert [run_state(options.folder, run).exists() for run in (1, 2, 3)] == [True, True, False]


def test_the_state_of_another_run_is_refused_before_any_step(tiny_parts, rule, tmp_path):
    options, steps = options_for(tmp_path), []
    go(tiny_parts, recipe_with(runs=2), options)
    options.out.unlink()
    first, second = (run_state(options.folder, run) for run in (1, 2))
    second.write_bytes(first.read_bytes())
    first.unlink()
    with pytest.raises(IneError, match=r"state-run-2\.safetensors: belongs to a run with other"):
        go(tiny_parts, recipe_with(runs=2), options, on_step=steps.append)
    assert steps == []


def test_the_states_of_all_runs_are_purged(tiny_parts, rule, tmp_path):
    options = options_for(tmp_path, purge=True)
    go(tiny_parts, recipe_with(runs=2), options)
    assert options.out.is_file()
    assert not options.folder.exists()


# How previews steer


def test_previews_steer_as_the_recipe_says_and_the_undefended_stays_plain(
    tiny_parts, rule, monkeypatch
):
    import ine.inversion.preview as module

    calls, real = [], module.in_units

    def noted(parts, prompts, seeds, guidance, settings):
        calls.append(guidance)
        return real(parts, prompts, seeds, guidance, settings)

    monkeypatch.setattr(module, "in_units", noted)
    recipe = with_benign(recipe_with(preview_guidance="additive", preview_strength=8.0), "a {} on")
    preview = previews_of(tiny_parts, recipe, rule, Finder())
    preview([noise(2, 32)], 4)
    steered = [g for g in calls if g.negative.vectors()]
    plain = [g for g in calls if not g.negative.vectors()]
    assert {(type(g), g.strength) for g in steered} == {(Additive, 8.0)}
    assert {type(g) for g in plain} == {ClassifierFree}
    assert (len(steered), len(plain)) == (2, 2)


def test_the_strength_of_previews_is_the_strength_of_their_pictures(tiny_parts, rule):
    plate = with_benign(thing_recipe(negative_prompt=""), "a {} on a plate")

    def preservation(strength):
        given = {"preview_guidance": "additive", "preview_strength": strength}
        spec = plate.inversion.model_copy(update=given)
        recipe = plate.model_copy(update={"inversion": spec})
        return previews_of(tiny_parts, recipe, rule, Finder())([noise(2, 32)], 4).preservation

    assert preservation(0.0) == pytest.approx(1, abs=1e-5)
    assert preservation(500.0) < 0.99


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"preview_strength": 8.0}, "preview_strength: 8, but cfg.*additive, contextual, sld$"),
        ({"preview_guidance": "aditive"}, "preview_guidance: .*did you mean 'additive'"),
        ({"preview_guidance": "vl-dnp"}, "preview_guidance: vl-dnp asks an observer"),
    ],
)
def test_previews_that_cannot_be_are_refused_before_any_work(
    tiny_parts, rule, tmp_path, fields, says
):
    with pytest.raises(RecipeError, match=says):
        go(tiny_parts, recipe_with(**fields), options_for(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["invert", "defend"])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["inversion.runs=0"], "inversion.runs"),
        (["inversion.preview_strength=-1"], "inversion.preview_strength"),
        (["inversion.preview_guidance=cfg", "inversion.preview_strength=2"], "no strength"),
    ],
)
def test_commands_say_what_is_wrong(run_ine, tmp_path, monkeypatch, command, given, says):
    monkeypatch.chdir(tmp_path)
    settings = [word for text in given for word in ("--set", text)]
    done = run_ine(command, "--concept", "fire", "--dry-run", *settings)
    assert done.exit_code == 3
    assert says in done.stderr


@pytest.mark.parametrize("name", ["fire", "weapon", "nudity", "violence"])
def test_shipped_recipes_steer_their_previews_by_a_guidance_that_there_is(name):
    check_steering(load_recipe(name).inversion)


# What is said


def test_header_and_card_say_how_many_runs_there_were_and_what_each_left(
    tiny_parts, rule, tmp_path, monkeypatch
):
    score(monkeypatch, 0.5, 0.125, preservation=0.75)
    recipe = recipe_with(runs=2, preview_guidance="additive", preview_strength=8.0, batch=3)
    go(tiny_parts, recipe, options_for(tmp_path))
    found = read_embedding(options_for(tmp_path).out)
    about = {key[4:]: value for key, value in found.metadata.items() if key.startswith("ine.")}
    assert (about["runs"], about["run"], about["runs_left"]) == ("2", "2", "0.500 0.125")
    assert about["runs_preserved"] == "0.750 0.750"
    assert "runs_recovered" not in about
    assert (about["preview_guidance"], float(about["preview_strength"])) == ("additive", 8)
    assert (about["steps"], about["image_steps"]) == ("4", "24")
    assert runs_in(found.metadata) == [
        {"left": "0.500", "preserved": "0.750"},
        {"left": "0.125", "preserved": "0.750"},
    ]
    assert "0.500 0.125" in model_card(found)
    job = SimpleNamespace(recipe=recipe)
    (table,) = runs_tables(job, found)
    assert [list(map(str, row)) for row in table.rows] == [
        ["1", "0.500", "0.750"],
        ["2 (chosen)", "0.125", "0.750"],
    ]
    assert "additive, strength 8" in table.notes[0]
    assert runs_tables(job, new_embedding(found.vectors, TRIGGER, "thing", {})) == []


def test_the_command_prints_every_run_and_a_dry_run_counts_them(run_ine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ("pictures.count=4", "pictures.batch=4", "pictures.steps=4", "tuning.steps=2")
    spec = ("inversion.steps=2", "inversion.preview_every=1", "inversion.preview_pictures=2")
    runs = (*few, *spec, "inversion.batch=1", "inversion.runs=2")
    command = ("invert", "--concept", "fire", *(word for s in runs for word in ("--set", s)))
    done = run_ine(*command, "--dry-run")
    assert "# runs: 2 x 2 steps, 4 pictures; the best is kept" in done.stdout
    done = run_ine(*command)
    assert done.exit_code == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if line.startswith("run ")]
    assert [line.partition(":")[0] for line in shown] == [
        *("run 1, step 1", "run 1, step 2", "run 2, step 1", "run 2, step 2"),
    ]
    assert sum("<- kept" in line for line in shown) == 1
    summary = json.loads((tmp_path / "fire-neg.safetensors.run" / "run.json").read_text())
    kept = f"run {summary['run']}, step {summary['kept_step']}:"
    assert next(line for line in shown if "<- kept" in line).startswith(kept)


def test_the_estimate_of_ine_defend_counts_runs_and_guidance():
    def stage(**fields):
        recipe = load_recipe("fire")
        given = {"preview_guidance": "cfg", "preview_strength": None, **fields}
        spec = recipe.inversion.model_copy(update=given)
        recipe = recipe.model_copy(update={"inversion": spec})
        return next(s for s in stages_of(recipe, 10, prompts_for(recipe, 0)) if s.trained)

    one, four = stage(runs=1), stage(runs=4)
    assert (one.name, four.name) == ("inversion", "4 inversions")
    assert four.trained == 4 * one.trained
    # The undefended pictures are shared, previews are not.
    assert one.rows < four.rows < 4 * one.rows
    steered = stage(runs=1, preview_guidance="additive", preview_strength=8.0)
    plain = 3 * 2 * 10 * InversionSettings(**vars(load_recipe("fire").inversion)).preview_pictures
    assert (steered.rows - plain) * 2 == (one.rows - plain) * 3
