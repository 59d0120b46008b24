"""`ine demo` and `ine demo --full` from end to end on the bundled model, at a tiny size."""

import json

import numpy as np
import pytest

from ine.embedding import read_embedding
from ine.evaluation import demo, full
from ine.evaluation.defences import UNDEFENDED, by_text
from ine.evaluation.study import concept_share, preservation, subject_share
from ine.judging.detectors import load_detector
from ine.judging.rules import find_rule
from ine.models.loading import load_parts
from ine.recipe import load_recipe
from ine.sampling import SamplerSettings

TINY = (
    "pictures.count=8",
    "pictures.batch=8",
    "pictures.steps=8",
    "tuning.steps=4",
    "inversion.steps=2",
    "inversion.preview_every=2",
    "inversion.preview_pictures=2",
    "erase.esd.iterations=1",
)
SAMPLER = SamplerSettings(scheduler="ddim", steps=2, guidance_scale=5.0, batch=4)


@pytest.fixture
def tiny(monkeypatch):
    for module in (demo, full):
        monkeypatch.setattr(module, "SAMPLER", SAMPLER)
    monkeypatch.setattr(demo, "QUICK", TINY)
    monkeypatch.setattr(full, "load_recipe", lambda name: load_recipe(name, TINY))
    monkeypatch.setattr(full, "STRENGTHS", {"uce": ({"erase_scale": 0.3},)})


def test_the_demo_unlearns_inverts_generates_judges_and_reports(tiny, tmp_path, monkeypatch):
    path, table, seconds = demo.run_demo(tmp_path, count=4, tell=lambda _: None)
    assert table.rows[0][0] == "undefended"
    assert len(table.rows) == 4
    assert set(seconds) == {"load", "unlearn", "invert", "generate", "report"}
    page = path.read_text()
    assert "fire-neg.safetensors" in page
    assert f"--unet {tmp_path}/fire-uce.safetensors" in page
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["sections"]
    embedding = read_embedding(tmp_path / "fire-neg.safetensors")
    assert embedding.metadata["ine.strength"] == "3.0"
    # A second run makes nothing anew: no picture, no vector.
    monkeypatch.setattr(demo, "run_inversion", None)
    monkeypatch.setattr("ine.evaluation.study.generate", None)
    again, same, _ = demo.run_demo(tmp_path, count=4, tell=lambda _: None)
    assert (again, same.rows) == (path, table.rows)


@pytest.mark.slow
def test_the_full_study_has_every_control(tiny, tmp_path):
    told = []
    path = full.run_full(
        tmp_path, concepts=("fire",), methods=("uce",), count=2, seeds=(0,), tell=told.append
    )
    figures = json.loads((tmp_path / "report.json").read_text())
    titles = [s["title"] for s in figures["sections"]]
    assert titles == [
        "fire: what UCE leaves",
        "fire: defences on UCE",
        "fire: the base model, nothing unlearned",
    ]
    labels = path.with_name("report.md").read_text()
    for control in (
        'control: "a picture"',
        "control: random",
        "control: embedding of snow",
        "oracle",
        "inverted on the base",
        "n=1",
        "seed 0",
    ):
        assert control in labels, control
    assert any("inverting base" in line for line in told)


def test_a_cell_is_read_back_only_for_the_same_question(tiny, tmp_path):
    parts = load_parts("mini")
    recipe = load_recipe("fire")
    bench = demo.Bench(
        recipe=recipe,
        judge=load_detector("mini-judge"),
        reporter=load_detector("mini-judge2"),
        rule=find_rule(recipe.pictures.rule),
        sampler=SAMPLER,
        folder=tmp_path,
        count=4,
    )
    made = bench.run(parts, "base", UNDEFENDED, "benign")
    read = bench.run(None, "base", UNDEFENDED, "benign")  # no model is needed
    assert np.array_equal(made.features, read.features)
    assert made.scores == read.scores
    assert concept_share(made, bench.rule) == concept_share(read, bench.rule)
    assert subject_share(made, demo.ATTRIBUTES).value <= 1
    assert preservation(made, read).value == pytest.approx(1)
    other = by_text("undefended", "a picture")  # the same file name, another negative
    assert not np.array_equal(bench.run(parts, "base", other, "benign").features, made.features)


def test_options_of_the_full_study_are_refused_without_it(run_ine, tmp_path):
    done = run_ine("demo", "--method", "uce", "--out", tmp_path)
    assert done.exit_code == 2
    assert "--full" in done.output
