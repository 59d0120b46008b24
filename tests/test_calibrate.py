"""Thresholds from benign pictures: the rule, the file, the command."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import probe_gate

from ine.calibration.check import check_calibrated, provenance, sampler_record
from ine.calibration.scores import gate_scores, never_opening
from ine.calibration.thresholds import calibrated, fewest_pictures, open_share, threshold_for
from ine.cli import COMMANDS
from ine.embeddings.embedding import new_embedding, write_embedding
from ine.errors import IneError, OutputError
from ine.guidance.cfg import ClassifierFree
from ine.guidance.gate_file import (
    gate_path,
    read_calibration,
    read_gate,
    write_calibration,
)
from ine.guidance.gates import Gated, Window
from ine.guidance.negative import Negative
from ine.models.loading import load_parts
from ine.sampling import SamplerSettings, sample_latents
from ine.text.encode import TextOptions

SETTINGS = SamplerSettings(steps=6, guidance_scale=5.0, batch=4)
GATE = probe_gate(0.25, (0.0, 0.2), window=Window(0.0, 0.5))


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


FIRE = new_embedding(noise(2, 32, seed=1), "fire-neg", "fire")
SNOW = new_embedding(noise(2, 32, seed=2), "snow-neg", "snow")
ONE = Negative("", (FIRE,))
TWO = Negative("", (FIRE, SNOW))


# --- the rule ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "rate", "opened"),
    [(99, 0.01, 0), (199, 0.01, 1), (200, 0.01, 1), (9, 0.1, 0), (100, 0.1, 9), (3, 0.5, 1)],
)
def test_the_threshold_is_the_score_of_the_right_rank(count, rate, opened):
    scores = np.random.default_rng(0).permutation(count).astype(float).tolist()
    threshold = threshold_for(scores, rate)
    assert threshold in scores
    assert sum(s > threshold for s in scores) == opened
    assert opened / count <= rate


def test_ties_open_for_fewer_never_for_more():
    assert threshold_for([0.5] * 10, 0.3) == 0.5
    assert calibrated(GATE, [0.5] * 10, 0.3).record["false_open"]["opened"] == 0


def test_fresh_pictures_open_it_at_no_more_than_the_wanted_rate():
    rng = np.random.default_rng(0)
    opened = [
        np.mean(rng.normal(size=200) > threshold_for(rng.normal(size=60).tolist(), 0.05))
        for _ in range(400)
    ]
    # k / (N + 1) = 3 / 61 in the mean; the naive quantile (k = 4) would give .066.
    assert np.mean(opened) == pytest.approx(3 / 61, abs=0.006)


@pytest.mark.parametrize(
    ("scores", "rate", "words"),
    [
        ([0.0] * 98, 0.01, "98 benign pictures cannot tell a rate of 0.01: at least 99"),
        ([0.0] * 9, 0.0, "false-open rate 0: give a share"),
        ([0.0] * 9, 1.0, "false-open rate 1: give a share"),
        ([0.0] * 9, math.nan, "false-open rate nan"),
        ([0.0, math.nan], 0.5, "score is NaN"),
    ],
)
def test_what_gives_no_threshold(scores, rate, words):
    with pytest.raises(IneError) as caught:
        threshold_for(scores, rate)
    assert words in str(caught.value)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.3, 0.5, 0.9])
def test_the_number_of_pictures_that_is_asked_for_is_enough(rate):
    fewest = fewest_pictures(rate)
    threshold_for([0.0] * fewest, rate)
    if fewest > 1:
        with pytest.raises(IneError):
            threshold_for([0.0] * (fewest - 1), rate)


# --- scores of real runs ------------------------------------------------------------------------


@pytest.mark.parametrize("negative", [ONE, TWO], ids=["one", "several"])
def test_scores_decide_when_the_gate_opens(tiny_parts, negative):
    prompts, seeds = [f"a {c}" for c in "abcdef"], list(range(6))
    done = []
    scores = gate_scores(tiny_parts, prompts, seeds, GATE, SETTINGS, done.append)
    assert done == [4, 6]
    middle = sorted(scores)[3]
    gate = replace(GATE, threshold=middle)
    for first in (0, 4):
        cut = slice(first, first + 4)
        guidance = Gated(ClassifierFree(negative), gate)
        _, notes, _ = sample_latents(tiny_parts, prompts[cut], seeds[cut], guidance, SETTINGS)
        opened = [n["gate"]["opened"] is not None for n in notes]
        assert opened == [s > middle for s in scores[cut]]


def test_runs_end_when_the_last_probe_is_judged(tiny_parts):
    rows = []
    handle = tiny_parts.unet.register_forward_hook(lambda _m, given, _o: rows.append(len(given[0])))
    try:
        settings = replace(SETTINGS, steps=20)
        gate = probe_gate(0.0, (0.0, 0.1))
        gate_scores(tiny_parts, ["a", "b"], [1, 2], gate, settings)
    finally:
        handle.remove()
    # Steps 0 to 2, and looks at 0 and 2.
    assert rows == [4, 2, 4, 4, 2]


def test_a_run_without_a_probe_is_refused(tiny_parts):
    settings, gate = replace(SETTINGS, steps=1), probe_gate(0.0, (0.5,), window=Window(0.5, 1.0))
    with pytest.raises(IneError, match="1 steps leave the gate no probe to judge"):
        gate_scores(tiny_parts, ["a"], [1], gate, settings)


def test_fresh_prompts_and_seeds_seldom_open_it(tiny_parts):
    letters = "abcdefghij"
    prompts = [f"a {a}{b}" for a in letters for b in letters]
    order = np.random.default_rng(0).permutation(len(prompts))
    settings = SamplerSettings(steps=2, guidance_scale=5.0, batch=20)
    gate = probe_gate(0.0)

    def scores(first):
        chosen = [prompts[k] for k in order[first : first + 40]]
        seeds = list(range(first, first + 40))
        return gate_scores(tiny_parts, chosen, seeds, gate, settings)

    found = calibrated(gate, scores(0), 0.2)
    fresh = open_share(found.gate.threshold, scores(40))
    assert found.record["false_open"]["opened"] == 7
    assert fresh["pictures"] == 40
    # .2 within three standard errors, sqrt(.2 * .8 * 2 / 40) each.
    assert fresh["share"] <= 0.2 + 3 * 0.09


# --- the file -----------------------------------------------------------------------------------


def test_a_gate_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "fire-neg.gate.json"
    found = calibrated(GATE, [0.1, 0.2, 0.3, 0.4], 0.5, {"seed": 3})
    write_calibration(found, path)
    assert read_gate(path) == found.gate == replace(GATE, threshold=0.3)
    assert read_calibration(path) == found
    assert found.record["false_open"] == {
        "wanted": 0.5, "measured": 0.25, "opened": 1, "pictures": 4,
    }  # fmt: skip
    with pytest.raises(OutputError, match="exists already"):
        write_calibration(found, path)
    write_calibration(found, path, force=True)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_closed_gate_is_as_the_one_to_calibrate():
    assert never_opening(GATE) == replace(GATE, threshold=math.inf)


def test_the_file_stands_beside_the_embedding():
    assert str(gate_path(["x/fire-neg.safetensors"])) == "x/fire-neg.gate.safetensors"
    both = ["x/fire-neg.safetensors", "y/snow-neg.pt"]
    assert str(gate_path(both)) == "x/fire-neg+snow-neg.gate.safetensors"


def broken(tmp_path, change):
    path = tmp_path / "bad.gate.json"
    write_calibration(calibrated(GATE, [0.1] * 4, 0.5), path)
    data = json.loads(path.read_text())
    text = change(data)
    path.write_text(text if isinstance(text, str) else json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: "{", "cannot be read as JSON"),
        (lambda d: "[]", "is not a gate; give the .gate.safetensors file"),
        (lambda d: d.update(kind="concept"), "is not a gate"),
        (lambda d: d.update(version=3), "is of version 3, this ine reads 1 and 2"),
        (
            lambda d: d.update(gate="recogniton"),
            "gate 'recogniton' is unknown; did you mean 'recognition'",
        ),
        (lambda d: d.update(gate=None), "gate None is unknown"),
        (lambda d: d.update(gate="presence"), "gate 'presence' was removed"),
        (lambda d: d.update(gate="posterior"), "make one with: ine calibrate EMBEDDING --out"),
        (lambda d: d.pop("settings"), "has no settings.threshold"),
        (lambda d: d["settings"].pop("threshold"), "has no settings.threshold"),
        (lambda d: d["settings"].update(prob=1), "settings.prob is unknown; did you mean 'probes'"),
        (lambda d: d["settings"].update(threshold="x"), "settings do not make a gate"),
        (lambda d: d["settings"].update(threshold=math.nan), "threshold is NaN"),
        (lambda d: d["settings"].update(queries=[2]), "give fractions of the run"),
        (lambda d: d["settings"].update(queries=3), "settings do not make a gate"),
        (lambda d: d["settings"].update(window=[0.5]), "none is inside the window"),
        (lambda d: d["settings"].update(window=[0, 2]), "gate window 0..2"),
        (lambda d: d["settings"].update(probes=[]), "has 0 probes for 2 queries"),
    ],
)
def test_files_that_are_no_gate(tmp_path, change, words):
    path = broken(tmp_path, change)
    with pytest.raises(IneError) as caught:
        read_gate(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_gate_that_is_not_there(tmp_path):
    with pytest.raises(IneError, match="no such file; make it with: ine calibrate"):
        read_gate(tmp_path / "none.gate.json")


def test_a_gate_says_when_it_is_used_elsewhere(tiny_parts):
    record = {
        "sampler": sampler_record(SETTINGS),
        **provenance(tiny_parts, [FIRE, SNOW]),
    }
    found = calibrated(GATE, [0.1] * 4, 0.5, record)
    assert check_calibrated(found, [SNOW, FIRE], tiny_parts, SETTINGS) == []
    notes = check_calibrated(found, [FIRE, SNOW], tiny_parts, replace(SETTINGS, steps=9))
    assert notes == [
        "the gate was calibrated with steps 6, here it is 9; its false-open rate may differ"
    ]
    skipping = replace(SETTINGS, reading=TextOptions(clip_skip=2))
    old = replace(found, record={**record, "sampler": {"steps": 6}})
    for gate in (found, old):
        (note,) = check_calibrated(gate, [FIRE, SNOW], tiny_parts, skipping)
        assert "calibrated with clip_skip 1, here it is 2" in note
    (note,) = check_calibrated(found, [FIRE], tiny_parts)
    assert "taught with the embeddings fire-neg, snow-neg, here are fire-neg; it looks" in note
    twin = replace(SNOW, vectors=(noise(2, 32, seed=9),))
    (note,) = check_calibrated(found, [FIRE, twin], tiny_parts)
    assert "here are fire-neg, snow-neg (other vectors)" in note
    other = replace(found, record={**record, "unet_fingerprint": "v1:+1.0", "unet": "esd"})
    (note,) = check_calibrated(other, [FIRE, SNOW], tiny_parts)
    assert "calibrated on the U-Net 'esd', here it is used on 'base'" in note


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, tmp_path, run_ine):
    monkeypatch.setitem(COMMANDS, "calibrate", ("ine.cli.calibrate", "calibrate", "Set a gate."))
    # The word's own vector: on the base model its pictures burn.
    parts = load_parts("mini")
    token = parts.tokenizers[0]("burning").input_ids[1]
    vector = parts.text_encoders[0].get_input_embeddings().weight[token]
    embedding = new_embedding(vector, "fire-neg", "fire", {"ine.base": "mini"})
    write_embedding(embedding, tmp_path / "fire-neg.safetensors")
    few = ("--false-open", 0.3, "--pictures", 4, "--steps", 8, "--batch", 8, "--examples", 64)

    def run(*args, settings=few):
        return run_ine("calibrate", tmp_path / "fire-neg.safetensors", *settings, *args)

    return run


def test_calibrate_with_prompts_of_ones_own(command, tmp_path):
    (tmp_path / "benign.txt").write_text("a dog\na cat\n")
    out = tmp_path / "mine.json"
    result = command("--prompts", tmp_path / "benign.txt", "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["gate"] == "recognition"
    assert data["prompts"]["source"] == "benign.txt"
    assert data["prompts"]["distinct"] == 2
    made_with = {"scheduler": "ddim", "steps": 8, "guidance_scale": 5.0, "clip_skip": 1}
    assert data["sampler"] == made_with
    assert [e["trigger"] for e in data["embeddings"]] == ["fire-neg"]
    for key in ("base_fingerprint", "unet_fingerprint"):
        assert data[key].startswith("v1:")
    assert "torch" in data["versions"]
    found = read_calibration(out)
    assert found.gate.threshold == data["settings"]["threshold"]
    assert found.threshold == data["look_ahead"]["probes"][0]["threshold"]
    assert data["text_width"] == 128
    # One probe before the run and one at its half, both at its noise level, with a rate each.
    assert data["look_ahead"]["timestep"] == 376
    assert data["false_open"]["pictures"] == data["restart_false_open"]["pictures"] == 4


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--examples", 3), 2, "3 is not in the range x>=64"),
        (("--false-open", 0), 2, "0 is not in the range"),
        (("--false-open", "nan"), 2, "'nan' is not a finite number"),
        (("--pictures", 1), 1, "1 benign pictures cannot tell a rate of 0.3: at least 3"),
        (("--concept", "fier"), 3, "did you mean 'fire'"),
        (("--prompts", "none.txt"), 8, "none.txt: cannot be read"),
        (("--unet", "none.safetensors"), 5, "no such file"),
    ],
)
def test_calibrate_refuses(command, tmp_path, args, code, words):
    result = command(*args)
    assert (result.exit_code, words in result.stderr) == (code, True), result.stderr
    assert not (tmp_path / "fire-neg.gate.safetensors").exists()


def test_calibrate_needs_an_embedding(command, run_ine):
    result = run_ine("calibrate")
    assert result.exit_code == 2
    assert "Missing argument 'EMBEDDING...'" in result.stderr


def test_a_gate_that_recognises_is_taught_resumed_and_used(command, tmp_path, run_ine):
    settings = ("--steps", 8, "--batch", 8, "--false-open", 0.1, "--pictures", 24, "--examples", 64)
    result = command(settings=settings)
    assert result.exit_code == 0, result.stderr
    path = tmp_path / "fire-neg.gate.safetensors"
    lines = result.stdout.splitlines()
    assert lines[0].startswith("threshold ")
    assert lines[1] == "open on 1 of 24 benign pictures (wanted at most 0.1)"
    assert lines[2].endswith("of 24 of the tuning prompts")
    assert lines[3] == f"wrote {path}"
    calibration = read_calibration(path)
    data = calibration.record
    assert data["prompts"]["source"] == "recipe fire, benign and preserved"
    assert calibration.gate.concept == "fire"
    assert [one.concept for one in calibration.look_ahead.probes] == ["fire"]
    assert data["examples"]["absent"]["drawn"] == 64
    assert 32 <= data["examples"]["shown-fire-neg"]["kept"] <= 64
    assert data["examples"]["rule"] == "mini-fire@0.5"
    # Some units lost: they alone are drawn again, and the gate is the same.
    before, units = (
        path.read_bytes(),
        sorted((tmp_path / "fire-neg.gate.safetensors.run").iterdir()),
    )
    assert len(units) == 24
    times = {unit: unit.stat().st_mtime_ns for unit in units}
    units[3].unlink()
    # Without --force nothing is overwritten.
    assert command(settings=settings).exit_code == OutputError.exit_code
    assert command("--force", settings=settings).exit_code == 0
    assert path.read_bytes() == before
    changed = [u for u in units if u.stat().st_mtime_ns != times[u]]
    assert changed == [units[3]]

    def generate(folder, *args):
        result = run_ine(
            "generate",
            *("--model", "mini", "--negative-embedding", tmp_path / "fire-neg.safetensors"),
            *("--prompt", "a dog on fire", "--prompt", "a dog", "--steps", 8, "--out", folder),
            *("--guidance", "additive", "--gate", path, "--gate-window", "0:0.6", *args),
        )
        assert result.exit_code == 0, result.stderr
        return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]

    burning, plain = generate(tmp_path / "late", "--restart", "--no-look-ahead")
    assert len(burning["attempts"]) > 1 == len(plain["attempts"])
    assert burning["unet_calls"] > plain["unet_calls"] > 16
    assert not plain["left"]
    # A look-ahead steers from the first step, and nothing is restarted.
    burning, plain = generate(tmp_path / "ahead")
    assert burning["gate"]["opened"][:2] == [0, "fire"]
    assert plain["gate"]["opened"] is None
    assert burning["unet_calls"] == plain["unet_calls"] + 5
