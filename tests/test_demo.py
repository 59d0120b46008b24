"""`ine demo` and `ine demo --full` from end to end on the bundled model, at a tiny size."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from ine.embeddings.embedding import read_embedding
from ine.guidance.gate_file import gate_path
from ine.guidance.recommended import recommendation_of
from ine.recipe import load_recipe
from ine.studies import bundled, controls, demo, full

# With NumPy 2 some diffusers schedulers read tensors in a way that torch warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TINY = (
    "pictures.count=8",
    "pictures.batch=8",
    "pictures.steps=8",
    "tuning.steps=4",
    "inversion.steps=2",
    "inversion.preview_every=2",
    "inversion.preview_pictures=2",
    "inversion.runs=1",
    "erase.esd.iterations=1",
    "defence.guidances={additive: [3]}",
    "defence.restarts=[]",
    "defence.windows=[[0, 0.6]]",
    "defence.false_open=[0.5]",
    "defence.look_ahead=2",
    "defence.learn_from=pictures",
    "defence.examples=16",
    "defence.pictures=8",
    "defence.benign=10",
)


@pytest.fixture
def tiny(monkeypatch):
    sampler = bundled.SAMPLER.model_copy(update={"steps": 2, "batch": 4})
    monkeypatch.setattr(bundled, "SAMPLER", sampler)
    monkeypatch.setattr(demo, "SAMPLER", replace(demo.SAMPLER, steps=4, batch=4))
    monkeypatch.setattr(demo, "QUICK", TINY)
    monkeypatch.setattr("ine.calibration.teach.FEWEST", 2)
    for module in (controls, full):
        monkeypatch.setattr(module, "load_recipe", lambda name: load_recipe(name, TINY))
    monkeypatch.setattr(full, "STRENGTHS", {"uce": ({"erase_scale": 0.3},)})


def run(folder):
    return demo.run_demo(folder, count=4, tell=lambda _: None)


def test_the_demo_unlearns_defends_judges_and_reports(tiny, tmp_path, monkeypatch, run_ine):
    path, table, seconds = run(tmp_path)
    shown = ["undefended", 'words "burning", always', "embedding, always", "the defence"]
    assert [row[0] for row in table.rows] == shown
    assert set(seconds) == {
        *("load", "unlearn", "invert", "probe", "choose", "generate", "report"),
    }
    page = path.read_text()
    assert f"--unet {tmp_path}/fire-uce.safetensors" in page
    # Four rows of pictures of each set, and all of them in one picture.
    report = json.loads((tmp_path / "report.json").read_text())
    grids = report["sections"][0]["grids"]
    assert [[row["label"] for row in grid["rows"]] for grid in grids] == [shown, shown]
    with Image.open(tmp_path / "demo.png") as poster:
        assert poster.height > 4 * 2 * 64
    # The file is what `ine defend` writes: it recommends the defence, and its gate is beside it.
    embedding = read_embedding(tmp_path / "fire-neg.safetensors")
    said = recommendation_of(embedding)
    assert (said.guidance, said.strength, said.look_ahead) == ("additive", 3.0, 2)
    assert gate_path([tmp_path / "fire-neg.safetensors"]).exists()
    # A second run makes no picture and no vector, and ends with the same bytes.
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    monkeypatch.setattr("ine.studies.defend.run.run_inversion", None)
    monkeypatch.setattr("ine.evaluation.run.make_unit", None)
    monkeypatch.setattr("ine.calibration.examples.sample_latents", None)
    again, same, _ = run(tmp_path)
    assert (again, same.rows) == (path, table.rows)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    # `ine evaluate` finds the same pictures in the demo's grid, and gives the same figures.
    work = tmp_path / "fire-neg.defend"
    grid, out = work / "held-back.yaml", work / "held-back"
    done = run_ine("evaluate", grid, "--out", out, "--store", work, "--json")
    assert done.exit_code == 0, done.stderr
    found = [
        (f["value"], f["low"], f["high"])
        for f in json.loads(done.stdout)["figures"]
        if (f["prompts"], f["metric"]) == ("implying", "flagged")
    ]
    assert found == [(row[1].value, row[1].low, row[1].high) for row in table.rows]


@pytest.mark.slow
def test_the_full_study_has_every_control(tiny, tmp_path):
    lines = []
    path = full.run_full(
        tmp_path, concepts=("fire",), methods=("uce",), count=2, seeds=(0,), tell=lines.append
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
        "seed 0, additive s=12",
    ):
        assert control in labels, control
    erasers, defences, _ = figures["sections"]
    (table,) = erasers["tables"]
    assert {cell["count"] for row in table["rows"] for cell in row[1:]} == {2}
    (pictures,) = defences["grids"]
    assert pictures["rows"][0]["label"] == "undefended"
    assert "embedding n=1, CFG" not in [row["label"] for row in pictures["rows"]]
    assert {len(row["cells"]) for row in pictures["rows"]} == {2}
    assert any("inverting base" in line for line in lines)


def test_options_of_the_full_study_are_refused_without_it(run_ine, tmp_path):
    done = run_ine("demo", "--method", "uce", "--out", tmp_path)
    assert done.exit_code == 2
    assert "--full" in done.output
