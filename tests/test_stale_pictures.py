"""A changed scheduler configuration never meets a picture that was made before, in any command."""

import json
import shutil
from dataclasses import replace

import pytest
import test_demo

from ine.evaluation.grid import GridModel
from ine.evaluation.grid_file import load_grid
from ine.evaluation.prepare import prepare
from ine.evaluation.run import run
from ine.files import shipped
from ine.models.loading import load_parts
from ine.models.parts import find_model
from ine.recipe import load_recipe
from ine.sampling import SamplerSettings
from ine.studies import demo
from ine.studies.compare import run_compare
from ine.studies.comparison import Choice, Comparison

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
tiny = test_demo.tiny

GRID = """
kind: grid
version: 1
name: stale
models: [{name: mini, model: model}]
prompts: [{name: p, prompts: [a dog, a cat], role: test, expects: benign}]
rules: mini-fire@0.5
sampler: {steps: 1, batch: 2}
"""


def units(folder):
    return {path.name for path in folder.rglob("units/*/*.zip")}


def with_other_betas(parts):
    config = parts.scheduler_config
    return replace(parts, scheduler_config={**config, "beta_end": 1.5 * config["beta_end"]})


def test_the_demo(tiny, tmp_path, monkeypatch):
    demo.run_demo(tmp_path, count=4, tell=lambda _: None)
    before = units(tmp_path)
    monkeypatch.setattr(demo, "load_parts", lambda name: with_other_betas(load_parts(name)))
    demo.run_demo(tmp_path, count=4, tell=lambda _: None)
    assert len(units(tmp_path) - before) == len(before)


def test_compare(tmp_path):
    parts, file = load_parts("mini"), shipped("embeddings") / "mini-fire-uce/fire-neg.safetensors"
    choice = Choice(methods=("cfg",), prompts=("a dog", "a cat"), count=2)

    def made(model):
        recipe = load_recipe("fire")
        sampler = SamplerSettings(steps=1, batch=2)
        comparison = Comparison(
            parts=model,
            model=GridModel(name="model", model="mini"),
            recipe=recipe,
            files=(file,),
            choice=choice,
            sampler=sampler,
            folder=tmp_path,
        )
        run_compare(comparison)
        return units(tmp_path)

    before = made(parts)
    assert len(made(with_other_betas(parts)) - before) == len(before)
    assert made(parts) == made(with_other_betas(parts))


def test_evaluate(tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID)
    shutil.copytree(find_model("mini"), tmp_path / "model")

    def made():
        run(prepare(load_grid(grid), tmp_path / "run"))
        return units(tmp_path)

    before = made()
    config = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    data = json.loads(config.read_text())
    config.write_text(json.dumps({**data, "beta_end": 1.5 * data["beta_end"]}))
    assert len(made() - before) == len(before) == 1
