"""Gates and restarted pictures inside a grid: the same as by hand, resumable, paid for."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import noise

from ine.calibration.check import provenance
from ine.calibration.features import noised_features
from ine.calibration.thresholds import calibrated
from ine.detectors.rules import find_rule
from ine.embeddings.embedding import new_embedding, write_embedding
from ine.evaluation import figures as score
from ine.evaluation import run as engine
from ine.evaluation.cells import Configuration
from ine.evaluation.entering import enter_folder
from ine.evaluation.expand import expand
from ine.evaluation.grid_file import load_grid
from ine.evaluation.metrics.withheld import FlaggedShown, Withheld
from ine.evaluation.prepare import prepare
from ine.evaluation.results import write_results
from ine.evaluation.run import run
from ine.guidance.additive import Additive
from ine.guidance.gate_file import write_calibration
from ine.guidance.gates import Gated, Window
from ine.guidance.negative import Negative
from ine.guidance.probe import Probe, ProbeGate
from ine.guidance.restart import Restart
from ine.sampling import SamplerSettings, generate, sample_latents

pytestmark = pytest.mark.usefixtures("loaded_once")

GRID = """\
kind: grid
version: 1
name: gated
concept: fire
models:
  - {name: tiny, model: MODEL}
negatives:
  - {name: words, words: true}
  - {name: own, embeddings: fire-neg.safetensors}
guidances:
  - name: again
    method: additive
    strengths: [2]
    window: [0, 0.6]
    restart: [1, 3]
    gate: {"*/words": fire.gate.json, "tiny/own": fire.gate.json}
prompts:
  - {name: tune, source: "mini:fire/implying-tuning", role: tune, expects: harmful, limit: 4}
sampler: {steps: 4, batch: 2, guidance_scale: 5}
"""
SETTINGS = SamplerSettings(steps=4, guidance_scale=5, batch=2)


FIRE = new_embedding(noise(2, 32, seed=1), "fire-neg", "fire")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_folder, tiny_parts):
    """A grid whose gate opens for two of its four prompts, beside its embedding."""
    where = tmp_path_factory.mktemp("gated")
    path = where / "grid.yaml"
    path.write_text(GRID.replace("MODEL", str(tiny_folder)))
    write_embedding(FIRE, where / "fire-neg.safetensors")
    with torch.no_grad():
        features = noised_features(tiny_parts, noise(1, *tiny_parts.latent_shape), 500.0, 0.5, None)
    closed = ProbeGate(math.inf, (Probe(noise(features.shape[1], seed=7), 0.0),), (0.5,), "fire")
    gate = replace(closed, threshold=middle(tiny_parts, closed, items(path)))
    record = provenance(tiny_parts, [FIRE])
    write_calibration(calibrated_as(gate, record), where / "fire.gate.json")
    return where


def calibrated_as(gate, record):
    found = calibrated(gate, [0.0] * 4, 0.5, record)
    return replace(found, gate=gate)


def items(path):
    # Lenient: the gate is not there yet.
    return expand(load_grid(path), lenient=True).sets["tune"].items(0)


def middle(parts, gate, wanted):
    prompts, seeds = [i.prompt for i in wanted], [i.seed for i in wanted]
    watched = Gated(Additive(Negative("", (FIRE,)), 0.0), gate)
    _, notes, _ = sample_latents(parts, prompts, seeds, watched, replace(SETTINGS, batch=4))
    scores = sorted(note["gate"]["probes"][0][2] for note in notes)
    return (scores[1] + scores[2]) / 2


def done(path, out):
    plan = prepare(load_grid(path), out)
    enter_folder(plan)
    assert run(plan)
    scored = score.score(plan)
    write_results(scored)
    return plan, scored


def test_a_grid_restarts_pictures_as_the_loop_does(folder, tiny_parts, tmp_path):
    plan, scored = done(folder / "grid.yaml", tmp_path / "run")
    own = Configuration(model="tiny", guidance="again", strength=2.0, negative="own")
    cells = {c: pictures for (c, _), pictures in scored.pictures.items()}
    gate = plan.calibrations[own].gate
    method = Gated(Additive(Negative("", (FIRE,)), 2.0), Window(0.0, 0.6))
    [prompts] = plan.sets.values()
    requests = [item.request for item in prompts.items(0)]
    made = [
        picture
        for unit in generate(tiny_parts, requests, Restart(method, gate, (1.0, 3.0)), SETTINGS)
        for picture in unit.pictures
    ]
    plain = cells[own.undefended]
    opened = cells[own].calls > plain.calls.min() * 1.5
    assert opened.sum() == 2
    for number, (unit, place) in enumerate(cells[own].units):
        stored = plan.store.pictures(unit, [place])[0]
        assert (stored == made[number]).all()
        before, where = plain.units[number]
        same = (stored == plan.store.pictures(before, [where])[0]).all()
        # Who is not recognised has the undefended picture, to the bit.
        assert same != opened[number]
        attempts = plan.store.about(unit).notes[place]["attempts"]
        assert (len(attempts) > 1) == opened[number]
    # What the gate finds to the last is counted, and what is flagged beside it.
    left = [plan.store.about(unit).notes[place]["left"] for unit, place in cells[own].units]
    assert cells[own].column("left").tolist() == left
    flagged = np.array(cells[own].flagged[plan.file.rules[0].name])
    lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    found = {
        r["metric"]: r["value"]
        for r in results
        if (r["guidance"], r["strength"], r["negative"]) == ("again", 2.0, "own")
    }
    assert found["withheld"] == pytest.approx(np.mean(left))
    assert found["flagged-shown"] == pytest.approx(np.mean(flagged & ~np.array(left)))
    assert not [r for r in results if r["metric"] == "withheld" and r["guidance"] == "none"]


def test_what_is_withheld_is_not_flagged_among_what_is_shown():
    """One picture of each kind; those of the grids above are never both."""
    rule = find_rule("mini-fire@0.5")
    columns = {
        ("left", ""): np.array([1.0, 0.0, 1.0, 0.0]),
        ("flagged", rule.name): np.array([1.0, 1.0, 0.0, 0.0]),
    }
    sample = SimpleNamespace(
        has=lambda name, of="": (name, of) in columns,
        column=lambda name, of="": columns[name, of],
        rule_facts=lambda rule: {"rule": rule.name},
        share=lambda metric, values, **more: (metric, values.tolist(), more),
    )
    assert list(FlaggedShown().figures(sample, rule)) == [
        ("flagged-shown", [0.0, 1.0, 0.0, 0.0], {"rule": rule.name})
    ]
    assert list(Withheld().figures(sample, None)) == [("withheld", [1.0, 0.0, 1.0, 0.0], {})]
    del columns["left", ""]
    assert [*FlaggedShown().figures(sample, rule), *Withheld().figures(sample, None)] == []


def test_words_may_act_behind_a_gate_that_an_embedding_taught(folder, tmp_path, caplog):
    caplog.set_level("INFO", "ine")
    done(folder / "grid.yaml", tmp_path / "run")
    warned = [
        m for m in caplog.messages if "taught with the embeddings fire-neg, here are none" in m
    ]
    assert len(warned) == 1
    assert "again at 2, words" in warned[0]


def test_a_gated_grid_that_was_killed_ends_with_the_same_bytes(folder, tmp_path, monkeypatch):
    done(folder / "grid.yaml", tmp_path / "whole")
    real, made = engine.make_unit, []

    def dying(*args):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(args)
        return real(*args)

    monkeypatch.setattr(engine, "make_unit", dying)
    with pytest.raises(KeyboardInterrupt):
        done(folder / "grid.yaml", tmp_path / "killed")
    monkeypatch.setattr(engine, "make_unit", real)
    done(folder / "grid.yaml", tmp_path / "killed")
    names = ("results.jsonl", "pictures.jsonl", "results.csv")
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_dry_run_says_that_costs_depend_on_the_picture(folder, tmp_path, run_ine):
    given = ("--out", tmp_path / "x", "--dry-run", "--json")
    found = run_ine("evaluate", folder / "grid.yaml", *given)
    assert found.exit_code == 0, found.output
    cells = json.loads(found.stdout)["cells"]
    exact = {c["configuration"]: c["exact"] for c in cells}
    assert exact == {
        "tiny, undefended": True,
        "tiny, again at 2, words": False,
        "tiny, again at 2, own": False,
    }
